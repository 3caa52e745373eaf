#include "actnn/cpu/normalized_copies.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "actnn/cpu/norm_act.h"
#include "tests/cpp/cpu/test_data.h"

namespace actnn::cpu {
namespace {

using Layout = SplitLayout<int64_t>;

/// The packed form of linear channels with x-hat = (x - 0.2) * 1.25.
std::vector<uint8_t> packed_input(const std::vector<float>& x, const Layout& layout, int bits, uint64_t offset) {
  const std::vector<NormActChannel> channels(static_cast<size_t>(layout.channels),
                                             forward_channel(0.2F, 1.25F, 0.7F, -0.1F, false));
  std::vector<float> y(x.size());
  std::vector<uint8_t> packed(static_cast<size_t>(layout.bytes(bits)));
  norm_act({.x = x.data(),
            .residual = nullptr,
            .y = y.data(),
            .type = ElementType::kFloat32,
            .layout = layout,
            .channels = channels.data(),
            .slope = 1.0F,
            .bits = bits,
            .keeps_below = true,
            .packed = packed.data(),
            .random = {7, offset},
            .stochastic = true},
           0, layout.groups());
  return packed;
}

std::vector<uint8_t> without_sides(const std::vector<uint8_t>& packed, const Layout& layout, int bits) {
  std::vector<uint8_t> normalized(static_cast<size_t>(layout.bytes(bits)));
  drop_sides(packed.data(), layout, bits, normalized.data(), 0, layout.groups());
  return normalized;
}

constexpr Layout kLayouts[] = {{1, 1}, {7, 3}, {65, 24}, {9, 100}, {130, 64}, {6, 256}};

TEST(NormalizedCopies, HaveAllButTheSides) {
  for (const Layout& layout : kLayouts) {
    const std::vector<float> x = random_values(layout.rows * layout.channels, 3, false);
    for (int bits = 2; bits <= kMostNormalizedBits; ++bits) {
      const std::vector<uint8_t> packed = packed_input(x, layout, split_bits(bits), 0);
      const std::vector<uint8_t> normalized = without_sides(packed, layout, bits);
      EXPECT_EQ(packed.size() - normalized.size(), static_cast<size_t>(layout.groups()) * 32);
      std::vector<uint8_t> again(packed.size());
      add_sides(normalized.data(), packed.data(), split_bits(bits), layout, bits, again.data(), 0, layout.groups());
      EXPECT_EQ(again, packed);
    }
  }
}

/// E[copy] = x-hat, and the side is that of another packed tensor, or above.
TEST(NormalizedCopies, AreUnbiased) {
  constexpr int kDraws = 2000;
  constexpr Layout kLayout{40, 14};
  const std::vector<float> x = random_values(kLayout.rows * kLayout.channels, 3, false);
  const std::vector<DecodeMap> identity(14, {1.0F, 0.0F, 1.0F, 0.0F, 1.0F});
  for (const int bits : {2, 4}) {
    std::vector<double> sum(x.size());
    std::vector<double> squares(x.size());
    for (int draw = 0; draw < kDraws; ++draw) {
      const std::vector<uint8_t> normalized =
          without_sides(packed_input(x, kLayout, split_bits(bits), static_cast<uint64_t>(draw)), kLayout, bits);
      std::vector<uint8_t> packed(static_cast<size_t>(kLayout.bytes(split_bits(bits))));
      add_sides(normalized.data(), nullptr, 0, kLayout, bits, packed.data(), 0, kLayout.groups());
      std::vector<float> copies(x.size());
      norm_act_output({.packed = packed.data(),
                       .bits = split_bits(bits),
                       .grad = nullptr,
                       .second_grad = nullptr,
                       .type = ElementType::kFloat32,
                       .layout = kLayout,
                       .slope = 0.0F},
                      identity.data(), copies.data(), 0, kLayout.groups());
      for (size_t i = 0; i < x.size(); ++i) {
        sum[i] += copies[i];
        squares[i] += double{copies[i]} * copies[i];
      }
    }
    for (size_t channel = 0; channel < 14; ++channel) {
      double bias = 0;
      double variance = 0;
      for (size_t i = channel; i < x.size(); i += 14) {
        const double mean = sum[i] / kDraws;
        bias += mean - (double{x[i]} - 0.2) * 1.25;
        variance += squares[i] / kDraws - mean * mean;
      }
      EXPECT_GT(variance, 0);
      EXPECT_NEAR(bias, 0, 5 * std::sqrt(variance / kDraws) + 1e-3) << "bits " << bits << ", channel " << channel;
    }
  }
}

/// The bytes of the format: 2 rows x 2 channels, 2 bits: the values 0..3 are -3, -1, 1, 3.
TEST(NormalizedCopiesFormat, BytesAreTheseAlways) {
  constexpr Layout kLayout{2, 2};
  const std::vector<float> x = {3, -1, 1, -3};
  const std::vector<NormActChannel> channels(2, {1.0F, 0.0F, 1.0F, 0.0F, 1.0F});
  std::vector<float> y(x.size());
  std::vector<uint8_t> packed(static_cast<size_t>(kLayout.bytes(3)));
  norm_act({.x = x.data(),
            .residual = nullptr,
            .y = y.data(),
            .type = ElementType::kFloat32,
            .layout = kLayout,
            .channels = channels.data(),
            .slope = 1.0F,
            .bits = 3,
            .keeps_below = true,
            .packed = packed.data(),
            .random = {},
            .stochastic = false},
           0, kLayout.groups());
  const std::vector<uint8_t> normalized = without_sides(packed, kLayout, 2);
  std::vector<uint8_t> expected(16 + 2 * 32);
  expected[1] = expected[3] = 0x3F;  // steps of 1, above and below
  expected[0] = expected[2] = 0x80;
  expected[16] = 0b11;       // lane 0, row 0: values 3 and 1, bit 0
  expected[16 + 32] = 0b01;  // bit 1
  expected[20] = 0b00;       // lane 1, row 1: values 2 and 0
  expected[20 + 32] = 0b01;
  EXPECT_EQ(normalized, expected);
}

}  // namespace
}  // namespace actnn::cpu
