#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "actnn/cpu/norm_act.h"
#include "tests/cpp/cpu/test_data.h"

/// \file
/// Activations whose derivatives are packed beside the copies: ReLU6, SiLU, hardswish.

namespace actnn::cpu {
namespace {

using enum ActivationFunction;
using Layout = SplitLayout<int64_t>;

constexpr Layout kLayouts[] = {{1, 1}, {7, 3}, {33, 8}, {65, 24}, {19, 40}, {130, 64}, {9, 100}, {6, 256}};

ActivatedNumber exact(ActivationFunction function, float z) {
  return function == kReLU6 ? activate<kReLU6>(z) : function == kSiLU ? activate<kSiLU>(z) : activate<kHardswish>(z);
}

/// A forward, and what its backward reads.
struct Pass {
  Layout layout;
  ElementType type;
  PackedDerivative derivative;
  int bits = 4;
  bool has_residual = false;
  uint64_t offset = 0;
  bool stochastic = true;
  bool has_kink = derivative.function == kReLU6;
  std::vector<NormActChannel> channels{};
  std::vector<DecodeMap> decode{};
  std::vector<float> values{};
  std::vector<uint8_t> x{};
  std::vector<uint8_t> residual{};
  std::vector<uint8_t> y{};
  std::vector<uint8_t> packed{};

  /// z of -10 to 10 or so.
  void run() {
    channels.clear();
    decode.clear();
    for (int64_t c = 0; c < layout.channels; ++c) {
      const float weight = c % 3 == 0 ? 3.0F : c % 3 == 1 ? -2.0F : 0.01F;
      const float bias = c % 3 == 2 ? 2.5F : 1.5F;
      channels.push_back(forward_channel(0.1F, 1.25F, weight, bias, has_kink));
      decode.push_back(decode_map(weight, bias, has_kink));
    }
    values = random_values(layout.rows * layout.channels, 3, false);
    x = as_elements(values, type);
    residual = as_elements(random_values(layout.rows * layout.channels, 5, false), type);
    y.assign(x.size(), 0);
    packed.assign(bits + derivative.bits == 0 ? 0 : static_cast<size_t>(layout.bytes(bits + derivative.bits)), 0);
    norm_act({.x = x.data(),
              .residual = has_residual ? residual.data() : nullptr,
              .y = y.data(),
              .type = type,
              .layout = layout,
              .channels = channels.data(),
              .slope = 1.0F,
              .bits = bits,
              .keeps_below = true,
              .packed = packed.data(),
              .random = {7, offset},
              .stochastic = stochastic,
              .derivative = derivative},
             0, layout.groups());
  }

  float element(const std::vector<uint8_t>& bytes, int64_t index) const {
    return with_element_type(type, [&]<class Element>(Element /*tag*/) {
      Element value;
      std::memcpy(&value, bytes.data() + index * static_cast<int64_t>(sizeof value), sizeof value);
      return to_float(value);
    });
  }
  float rounded(float value) const { return element(as_elements({value}, type), 0); }

  float z(int64_t i) const {
    const NormActChannel& channel = channels[i % layout.channels];
    const float scaled = channel.z_scale * element(x, i);
    const float z = scaled + channel.z_shift;
    return has_residual ? z + element(residual, i) : z;
  }
  ActivatedNumber expected(int64_t i) const { return exact(derivative.function, z(i)); }

  NormActBackward backward(const std::vector<uint8_t>& grad) const {
    return {.packed = packed.data(),
            .bits = bits,
            .grad = grad.data(),
            .second_grad = nullptr,
            .type = type,
            .layout = layout,
            .slope = 1.0F,
            .derivative = derivative};
  }

  /// The derivatives that are kept: gradients of z for gradients of 1.
  std::vector<float> derivatives() const {
    const std::vector<uint8_t> ones = as_elements(std::vector<float>(values.size(), 1.0F), type);
    const std::vector<NormActGradient> gradients(channels.size(), {1.0F, 0.0F, 0.0F, 0.0F});
    const std::vector<NormActChannel> nothing(channels.size());
    std::vector<uint8_t> result(ones.size());
    NormActBackward arguments = backward(ones);
    arguments.x = x.data();
    arguments.channels_of_x = nothing.data();
    norm_act_input_gradient(arguments, gradients.data(), result.data(), nullptr, 0, layout.groups());
    std::vector<float> floats;
    for (size_t i = 0; i < values.size(); ++i) {
      floats.push_back(element(result, static_cast<int64_t>(i)));
    }
    return floats;
  }
};

class NormActDerived : public testing::TestWithParam<std::tuple<ElementType, ActivationFunction>> {
 public:
  ElementType type() const { return std::get<0>(GetParam()); }
  ActivationFunction function() const { return std::get<1>(GetParam()); }
  std::vector<int> widths() const { return function() == kReLU6 ? std::vector{1} : std::vector{1, 3, 4, 7}; }
};
INSTANTIATE_TEST_SUITE_P(All, NormActDerived,
                         testing::Combine(testing::ValuesIn(kElementTypes),
                                          testing::Values(kReLU6, kSiLU, kHardswish)));

TEST_P(NormActDerived, OutputIsExactAndDerivativesAreNear) {
  for (const Layout layout : kLayouts) {
    for (const int width : widths()) {
      for (const bool has_residual : {false, true}) {
        for (const int bits : {0, 2, 8}) {
          Pass pass{.layout = layout,
                    .type = type(),
                    .derivative = {function(), width},
                    .bits = bits,
                    .has_residual = has_residual};
          pass.run();
          const float step = DerivativeGrid(pass.derivative).step;
          const float rounding = type() == ElementType::kFloat32 ? 0.0F : 0.01F;
          const std::vector<float> derivatives = pass.derivatives();
          for (int64_t i = 0; i < layout.rows * layout.channels; ++i) {
            const auto [y, derivative] = pass.expected(i);
            ASSERT_EQ(pass.element(pass.y, i), pass.rounded(y));
            if (function() == kReLU6) {
              ASSERT_EQ(derivatives[i], derivative);
            } else {
              ASSERT_NEAR(derivatives[i], derivative, step * 1.01F + rounding);
            }
          }
        }
      }
    }
  }
}

TEST_P(NormActDerived, NothingIsPackedWithoutBits) {
  Pass pass{.layout = {33, 24}, .type = type(), .derivative = {function(), 0}, .bits = 0};
  pass.run();
  for (int64_t i = 0; i < 33 * 24; ++i) {
    ASSERT_EQ(pass.element(pass.y, i), pass.rounded(pass.expected(i).y));
  }
}

/// The planes of copies are those of the pass without derivatives.
TEST_P(NormActDerived, CopiesAreThoseWithoutDerivatives) {
  for (const Layout layout : kLayouts) {
    Pass pass{.layout = layout, .type = type(), .derivative = {function(), widths().back()}};
    pass.run();
    Pass plain = pass;
    plain.derivative = {};
    plain.run();
    const int64_t steps = layout.groups() * static_cast<int64_t>(sizeof(SplitSteps));
    EXPECT_TRUE(std::equal(plain.packed.begin(), plain.packed.begin() + steps, pass.packed.begin()));
    const int64_t words = codes_offset(layout.groups());
    constexpr int64_t kPlane = kSplitLanes * static_cast<int64_t>(sizeof(uint32_t));
    for (int64_t group = 0; group < layout.groups(); ++group) {
      const auto of_plain = plain.packed.begin() + words + group * plain.bits * kPlane;
      EXPECT_TRUE(std::equal(of_plain, of_plain + plain.bits * kPlane,
                             pass.packed.begin() + words + group * (pass.bits + pass.derivative.bits) * kPlane));
    }
  }
}

TEST_P(NormActDerived, GradientsAreThoseOfTheDerivatives) {
  for (const Layout layout : kLayouts) {
    Pass pass{.layout = layout, .type = type(), .derivative = {function(), widths().back()}};
    pass.run();
    const std::vector<uint8_t> grad = as_elements(random_values(layout.rows * layout.channels, 8, false), type());
    std::vector<DecodeMap> plain = pass.decode;
    std::vector<NormActGradient> gradients;
    for (DecodeMap& channel : plain) {
      channel.a = 1.0F;
      channel.b = 0.0F;
      gradients.push_back({0.5F, 0.25F, -0.125F, channel.linear});
    }
    std::vector<uint8_t> grad_input(grad.size());
    std::vector<uint8_t> grad_sum(grad.size());
    norm_act_input_gradient(pass.backward(grad), gradients.data(), grad_input.data(), grad_sum.data(), 0,
                            layout.groups());
    const auto count = static_cast<size_t>(layout.channels);
    std::vector<double> sums(count);
    std::vector<double> copy_sums(count);
    norm_act_sums(pass.backward(grad), pass.decode.data(), 0, layout.row_blocks(), sums.data(), copy_sums.data());

    // The gradient of the input at gradients of z of 0 has the copy.
    const std::vector<uint8_t> zeros(grad.size());
    std::vector<NormActGradient> of_copy = gradients;
    std::vector<uint8_t> copies(grad.size());
    for (NormActGradient& channel : of_copy) {
      channel.scale = channel.shift = 0.0F;
      channel.of_copy = 1.0F;
    }
    norm_act_input_gradient(pass.backward(zeros), of_copy.data(), copies.data(), nullptr, 0, layout.groups());

    const std::vector<float> derivatives = pass.derivatives();
    std::vector<double> expected_sums(count);
    std::vector<double> expected_copy_sums(count);
    const double precision = type() == ElementType::kFloat32 ? 1e-6 : 1e-2;
    for (int64_t i = 0; i < layout.rows * layout.channels; ++i) {
      const double dz = double{pass.element(grad, i)} * derivatives[i];
      const double copy = pass.element(copies, i);
      ASSERT_NEAR(pass.element(grad_sum, i), dz, precision * (1 + std::abs(dz)));
      ASSERT_NEAR(pass.element(grad_input, i), 0.5 * dz + 0.25 * copy - 0.125,
                  precision * (1 + std::abs(copy) + std::abs(dz)));
      expected_sums[i % layout.channels] += dz;
      expected_copy_sums[i % layout.channels] += dz * copy;
    }
    for (size_t c = 0; c < count; ++c) {
      EXPECT_NEAR(sums[c], expected_sums[c], precision * 5 * static_cast<double>(layout.rows));
      EXPECT_NEAR(copy_sums[c], expected_copy_sums[c], precision * 50 * static_cast<double>(layout.rows));
    }
  }
}

TEST_P(NormActDerived, AnInputTakesThePlaceOfTheCopies) {
  for (const Layout layout : kLayouts) {
    for (const int bits : {0, 3}) {
      Pass pass{.layout = layout, .type = type(), .derivative = {function(), widths().back()}, .bits = bits};
      pass.run();
      const std::vector<uint8_t> grad = as_elements(random_values(layout.rows * layout.channels, 8, false), type());
      const std::vector<NormActChannel> of_x(pass.channels.size(), {0.0F, 0.0F, 1.25F, -0.125F, 1.0F});
      const std::vector<NormActGradient> gradients(pass.channels.size(), {0.5F, 0.25F, -0.125F, 1.0F});
      NormActBackward backward = pass.backward(grad);
      backward.x = pass.x.data();
      backward.channels_of_x = of_x.data();
      std::vector<uint8_t> grad_input(grad.size());
      norm_act_input_gradient(backward, gradients.data(), grad_input.data(), nullptr, 0, layout.groups());
      const DerivativeGrid grid(pass.derivative);
      std::vector<float> derivatives = pass.derivatives();
      for (int64_t i = 0; i < layout.rows * layout.channels; ++i) {
        // From its rounding to the type, the derivative of the grid again.
        const float derivative = grid.decode(std::round((derivatives[i] - grid.lowest) / grid.step));
        const float dz = derived_gradient(pass.element(grad, i), derivative);
        const float s = 1.25F * pass.element(pass.x, i) - 0.125F;
        ASSERT_EQ(pass.element(grad_input, i), pass.rounded(0.5F * dz + 0.25F * s - 0.125F));
      }
    }
  }
}

/// E[d] = d, and E[d s] = d s: the roundings of derivatives and of copies are independent.
TEST(NormActDerivatives, AreUnbiasedAlsoInProductsWithCopies) {
  constexpr int kDraws = 3000;
  for (const ActivationFunction function : {kSiLU, kHardswish}) {
    for (const int width : {1, 3}) {
      Pass pass{.layout = {8, 64}, .type = ElementType::kFloat32, .derivative = {function, width}, .bits = 2};
      const auto count = static_cast<size_t>(pass.layout.rows * pass.layout.channels);
      std::vector<double> sum(count);
      std::vector<double> products(count);
      std::vector<double> squares(count);
      std::vector<uint8_t> ones = as_elements(std::vector<float>(count, 1.0F), pass.type);
      for (int draw = 0; draw < kDraws; ++draw) {
        pass.offset = static_cast<uint64_t>(draw);
        pass.run();
        // s in the gradient of the input, d in that of z.
        std::vector<NormActGradient> gradients;
        for (const DecodeMap& channel : pass.decode) {
          gradients.push_back({0.0F, 1.0F, 0.0F, channel.linear});
        }
        std::vector<uint8_t> copies(ones.size());
        std::vector<uint8_t> derivatives(ones.size());
        norm_act_input_gradient(pass.backward(ones), gradients.data(), copies.data(), derivatives.data(), 0,
                                pass.layout.groups());
        for (size_t i = 0; i < count; ++i) {
          const double d = pass.element(derivatives, static_cast<int64_t>(i));
          const double product = d * pass.element(copies, static_cast<int64_t>(i));
          sum[i] += d;
          products[i] += product;
          squares[i] += product * product;
        }
      }
      double worst = 0;
      double worst_product = 0;
      const double step = DerivativeGrid(pass.derivative).step;
      for (size_t i = 0; i < count; ++i) {
        const NormActChannel& channel = pass.channels[i % 64];
        const double s = double{channel.s_scale} * pass.values[i] + channel.s_shift;
        const double d = pass.expected(static_cast<int64_t>(i)).derivative;
        const double mean = products[i] / kDraws;
        const double error = std::sqrt(std::max(squares[i] / kDraws - mean * mean, 0.0) / kDraws) + 2e-3;
        worst = std::max(worst, std::abs(sum[i] / kDraws - d) / (0.5 * step / std::sqrt(double{kDraws}) + 1e-5));
        worst_product = std::max(worst_product, std::abs(mean - d * s) / error);
      }
      EXPECT_LT(worst, 5) << width;
      EXPECT_LT(worst_product, 5) << width;
    }
  }
}

/// The copy of the output of ReLU6, from the same bytes: exact at 0 and 6, unbiased between.
TEST(NormActRelu6, OutputIsUnbiased) {
  constexpr int kDraws = 2000;
  for (const int bits : {2, 4}) {
    Pass pass{.layout = {12, 33}, .type = ElementType::kFloat32, .derivative = {kReLU6, 1}, .bits = bits};
    std::vector<double> sum(12 * 33);
    std::vector<double> squares(12 * 33);
    for (int draw = 0; draw < kDraws; ++draw) {
      pass.offset = static_cast<uint64_t>(draw);
      pass.run();
      std::vector<uint8_t> result(pass.x.size());
      norm_act_output(pass.backward(pass.x), pass.decode.data(), result.data(), 0, pass.layout.groups());
      for (size_t i = 0; i < sum.size(); ++i) {
        const double y = pass.element(result, static_cast<int64_t>(i));
        sum[i] += y;
        squares[i] += y * y;
      }
    }
    for (size_t i = 0; i < sum.size(); ++i) {
      const double y = pass.element(pass.y, static_cast<int64_t>(i));
      const double mean = sum[i] / kDraws;
      if (y == 0.0 || y == 6.0) {
        EXPECT_EQ(mean, y);
      } else {
        const double error = std::sqrt(std::max(squares[i] / kDraws - mean * mean, 0.0) / kDraws);
        EXPECT_NEAR(mean, y, 5 * error + 0.02) << i;
      }
    }
  }
}

TEST(NormActRelu6, GradientsOfFlatPartsAreZeroEvenOfInfinities) {
  Pass pass{.layout = {33, 8}, .type = ElementType::kFloat32, .derivative = {kReLU6, 1}};
  pass.run();
  const std::vector<uint8_t> grad = as_elements(std::vector<float>(33 * 8, float_of(kInfinityFloat32)), pass.type);
  const std::vector<NormActGradient> gradients(8, {1.0F, 0.0F, 0.0F, 0.0F});
  std::vector<uint8_t> result(grad.size());
  norm_act_input_gradient(pass.backward(grad), gradients.data(), result.data(), nullptr, 0, pass.layout.groups());
  for (int64_t i = 0; i < 33 * 8; ++i) {
    EXPECT_EQ(pass.element(result, i), pass.expected(i).derivative == 0.0F ? 0.0F : float_of(kInfinityFloat32));
  }
}

/// The bytes of the format: one row of 8 channels, one lane. The planes of derivatives come behind those of copies.
struct OneLane {
  std::vector<uint8_t> packed;
  int bits;
  int planes;

  OneLane(const std::vector<float>& values, int copy_bits, PackedDerivative derivative, bool stochastic)
      : bits(copy_bits), planes(copy_bits + derivative.bits) {
    const Layout layout{1, 8};
    const std::vector<NormActChannel> channels(8,
                                               {1.0F, 0.0F, 1.0F, 0.0F, derivative.function == kReLU6 ? 0.0F : 1.0F});
    std::vector<float> y(8);
    packed.resize(static_cast<size_t>(layout.bytes(planes)));
    norm_act({.x = values.data(),
              .residual = nullptr,
              .y = y.data(),
              .type = ElementType::kFloat32,
              .layout = layout,
              .channels = channels.data(),
              .slope = 1.0F,
              .bits = bits,
              .keeps_below = true,
              .packed = packed.data(),
              .random = {7, 3},
              .stochastic = stochastic,
              .derivative = derivative},
             0, 1);
  }

  uint32_t word(int plane) const {
    uint32_t value;
    std::memcpy(&value, packed.data() + 16 + size_t{4} * kSplitLanes * plane, sizeof value);
    return value;
  }
  uint32_t code(int k) const {
    uint32_t code = 0;
    for (int plane = bits; plane < planes; ++plane) {
      code |= (word(plane) >> k & 1u) << (plane - bits);
    }
    return code;
  }
};

TEST(NormActDerivedFormat, BytesAreTheseAlways) {
  const std::vector<float> values = {-4, -2, -1, 0.25F, 1, 2, 4, 8};
  // In steps of 2 / 7 from -0.5: 1.75, 1.17, 2.33, 3.79, 4.67, 5.83, 5.25, 5.25.
  const OneLane hardswish(values, 2, {kHardswish, 3}, false);
  EXPECT_EQ(hardswish.packed.size(), 16U + 5 * 32);
  EXPECT_EQ(hardswish.word(0), 0b11111000U);  // sides
  EXPECT_EQ(hardswish.word(2), 0b11010010U);
  EXPECT_EQ(hardswish.word(3), 0b00100101U);
  EXPECT_EQ(hardswish.word(4), 0b11111000U);

  const OneLane relu6(values, 2, {kReLU6, 1}, true);
  EXPECT_EQ(relu6.word(0), 0b11111000U);
  EXPECT_EQ(relu6.word(2), 0b01111000U);

  // Derivatives -0.0527, -0.0908, 0.0723, 0.624, 0.928, 1.091, 1.053, 1.003 in steps of 0.3999 from -0.0998.
  const OneLane silu(values, 0, {kSiLU, 2}, false);
  EXPECT_EQ(silu.packed.size(), 16U + 2 * 32);
  EXPECT_EQ(silu.word(0), 0b11110000U);
  EXPECT_EQ(silu.word(1), 0b11111000U);
  EXPECT_TRUE(std::all_of(silu.packed.begin(), silu.packed.begin() + 16, [](uint8_t byte) { return byte == 0; }));
}

TEST(NormActDerivedFormat, NoiseIsThatOfItsOwnCounter) {
  const std::vector<float> values = {-4, -2, -1, 0.25F, 1, 2, 4, 8};
  const PackedDerivative derivative{kSiLU, 7};
  const OneLane lane(values, 3, derivative, true);
  const PhiloxBlock noise = RandomState{7, 3}.block(uint64_t{1} << 63);
  for (int k = 0; k < 8; ++k) {
    EXPECT_EQ(lane.code(k),
              DerivativeEncoder(derivative).encode(activate<kSiLU>(values[k]).derivative, random16(noise, k)));
  }
}

}  // namespace
}  // namespace actnn::cpu
