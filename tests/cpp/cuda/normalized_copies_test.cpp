#include "actnn/cpu/normalized_copies.h"

#include <cmath>

#include "actnn/cpu/norm_act.h"
#include "actnn/cuda/norm_act.h"
#include "tests/cpp/cpu/test_data.h"
#include "tests/cpp/cuda/gpu_test.h"

namespace actnn::cuda {
namespace {

using cpu::as_elements;
using cpu::kElementTypes;
using cpu::random_values;
using Layout = SplitLayout<int64_t>;

constexpr RandomState kRandom{.seed = 7, .offset = 3};
constexpr RandomState kRandomOfNormalized{.seed = 7, .offset = 4};

/// A sum of a norm and a residual with an activation.
struct Problem {
  Layout layout;
  ElementType type;
  int bits = 3;  ///< 0: nothing is saved of the sum
  int normalized_bits = 2;
  float slope = 0.0F;
  bool stochastic = true;
  bool special = false;
  size_t offset = 0;

  std::vector<uint8_t> elements(unsigned seed) const {
    return as_elements(random_values(layout.rows * layout.channels, seed, special && seed == 3), type);
  }
  size_t shift() const { return offset * static_cast<size_t>(element_size(type)); }
};

struct Channels {
  std::vector<NormActChannel> norm;
  std::vector<NormActChannel> sum;
  std::vector<DecodeMap> decode;
  std::vector<NormActGradient> gradient;

  explicit Channels(int64_t count) {
    for (int64_t c = 0; c < count; ++c) {
      const float weight = 0.4F * static_cast<float>(c % 5) - 0.7F;
      norm.push_back(forward_channel(0.2F, 1.25F, weight, 0.1F, false));
      sum.push_back(sum_channel(norm.back().z_scale, norm.back().z_shift));
      decode.push_back(decode_map(weight, 0.1F, false));
      gradient.push_back(gradient_channel(decode.back(), weight, 1.25F, 0.03F, -0.02F));
    }
  }
};

/// What the CPU keeps.
struct Expected {
  std::vector<uint8_t> y;
  std::vector<uint8_t> packed;
  std::vector<uint8_t> normalized;
  std::vector<uint8_t> both;  ///< values of `normalized` with the sides of `packed`

  Expected(const Problem& problem, const Channels& channels)
      : y(problem.elements(3).size()),
        packed(problem.bits == 0 ? 0 : static_cast<size_t>(problem.layout.bytes(problem.bits))),
        normalized(static_cast<size_t>(problem.layout.bytes(problem.normalized_bits))),
        both(static_cast<size_t>(problem.layout.bytes(split_bits(problem.normalized_bits)))) {
    const std::vector<uint8_t> x = problem.elements(3);
    const std::vector<uint8_t> residual = problem.elements(5);
    const int64_t groups = problem.layout.groups();
    cpu::NormActForward forward{.x = x.data(),
                                .residual = nullptr,
                                .y = y.data(),
                                .type = problem.type,
                                .layout = problem.layout,
                                .channels = channels.norm.data(),
                                .slope = 1.0F,
                                .bits = split_bits(problem.normalized_bits),
                                .keeps_below = true,
                                .packed = both.data(),
                                .random = kRandomOfNormalized,
                                .stochastic = problem.stochastic};
    cpu::norm_act(forward, 0, groups);
    cpu::drop_sides(both.data(), problem.layout, problem.normalized_bits, normalized.data(), 0, groups);
    forward.residual = residual.data();
    forward.channels = channels.sum.data();
    forward.slope = problem.slope;
    forward.bits = problem.bits;
    forward.keeps_below = problem.slope != 0.0F;
    forward.packed = packed.data();
    forward.random = kRandom;
    cpu::norm_act(forward, 0, groups);
    cpu::add_sides(normalized.data(), packed.empty() ? nullptr : packed.data(), problem.bits, problem.layout,
                   problem.normalized_bits, both.data(), 0, groups);
  }
};

void compare_forward(const Problem& problem, const Channels& channels, const Expected& expected) {
  const GpuBytes x(problem.elements(3), problem.shift());
  const GpuBytes residual(problem.elements(5), problem.shift());
  const GpuBytes y(expected.y.size(), problem.shift());
  const GpuBytes packed(expected.packed.size());
  const GpuBytes normalized(expected.normalized.size());
  const GpuArray<NormActChannel> sum(channels.sum);
  const GpuArray<NormActChannel> norm(channels.norm);
  check(norm_act({.x = x.as<void>(),
                  .residual = residual.as<void>(),
                  .y = y.as<void>(),
                  .type = problem.type,
                  .layout = problem.layout,
                  .channels = sum.data(),
                  .slope = problem.slope,
                  .bits = problem.bits,
                  .keeps_below = problem.slope != 0.0F,
                  .packed = packed.as<uint8_t>(),
                  .random = {.shift = kRandom},
                  .stochastic = problem.stochastic,
                  .normalized = {.channels = norm.data(),
                                 .bits = problem.normalized_bits,
                                 .packed = normalized.as<uint8_t>(),
                                 .random = {.shift = kRandomOfNormalized}}},
                 nullptr));
  ASSERT_EQ(y.read(), expected.y);
  ASSERT_EQ(packed.read(), expected.packed);
  ASSERT_EQ(normalized.read(), expected.normalized);
}

void compare_backward(const Problem& problem, const Channels& channels, const Expected& expected) {
  const std::vector<uint8_t> grad = problem.elements(8);
  const cpu::NormActBackward on_cpu{.packed = expected.both.data(),
                                    .bits = split_bits(problem.normalized_bits),
                                    .grad = grad.data(),
                                    .second_grad = nullptr,
                                    .type = problem.type,
                                    .layout = problem.layout,
                                    .slope = problem.slope};
  const GpuBytes packed(expected.packed);
  const GpuBytes normalized(expected.normalized);
  const GpuBytes gpu_grad(grad, problem.shift());
  const NormActBackward on_gpu{.packed = problem.bits == 0 ? nullptr : packed.as<uint8_t>(),
                               .bits = problem.bits,
                               .grad = gpu_grad.as<void>(),
                               .second_grad = nullptr,
                               .type = problem.type,
                               .layout = problem.layout,
                               .slope = problem.slope,
                               .normalized = normalized.as<uint8_t>(),
                               .normalized_bits = problem.normalized_bits};

  std::vector<uint8_t> expected_input(grad.size());
  std::vector<uint8_t> expected_sum(grad.size());
  cpu::norm_act_input_gradient(on_cpu, channels.gradient.data(), expected_input.data(), expected_sum.data(), 0,
                               problem.layout.groups());
  const GpuBytes grad_input(grad.size(), problem.shift());
  const GpuBytes grad_sum(grad.size(), problem.shift());
  const GpuArray<NormActGradient> gradient(channels.gradient);
  check(norm_act_input_gradient(on_gpu, gradient.data(), grad_input.as<void>(), grad_sum.as<void>(), nullptr));
  ASSERT_EQ(grad_input.read(), expected_input);
  ASSERT_EQ(grad_sum.read(), expected_sum);

  const auto count = static_cast<size_t>(problem.layout.channels);
  std::vector<double> expected_sums(count);
  std::vector<double> expected_copy_sums(count);
  cpu::norm_act_sums(on_cpu, channels.decode.data(), 0, problem.layout.row_blocks(), expected_sums.data(),
                     expected_copy_sums.data());
  const GpuArray<DecodeMap> decode(channels.decode);
  const GpuArray<float> scratch(norm_act_scratch(problem.layout));
  const GpuArray<float> sums(problem.layout.channels);
  const GpuArray<float> copy_sums(problem.layout.channels);
  check(norm_act_sums(on_gpu, decode.data(), scratch.data(), sums.data(), copy_sums.data(), nullptr));
  for (size_t c = 0; c < count; ++c) {
    if (problem.special && !std::isfinite(expected_copy_sums[c])) {
      EXPECT_FALSE(std::isfinite(copy_sums.read()[c]));
      continue;
    }
    // Elements are of magnitude 10 at most.
    const double rows = static_cast<double>(problem.layout.rows);
    EXPECT_NEAR(sums.read()[c], expected_sums[c], 2e-5 * rows);
    EXPECT_NEAR(copy_sums.read()[c], expected_copy_sums[c], 2e-4 * rows);
  }
}

void compare(const Problem& problem) {
  SCOPED_TRACE(testing::Message() << problem.layout.rows << " x " << problem.layout.channels << ", " << problem.bits
                                  << " and " << problem.normalized_bits << " bits, slope " << problem.slope);
  const Channels channels(problem.layout.channels);
  const Expected expected(problem, channels);
  compare_forward(problem, channels, expected);
  if (!testing::Test::HasFatalFailure()) {
    compare_backward(problem, channels, expected);
  }
}

using NormalizedCopies = GpuTestOf<ElementType>;
INSTANTIATE_TEST_SUITE_P(All, NormalizedCopies, testing::ValuesIn(kElementTypes));

TEST_P(NormalizedCopies, AreThoseOfTheCpu) {
  for (const Layout layout : {Layout{1, 1}, {7, 3}, {33, 8}, {130, 16}, {65, 24}, {19, 43}, {130, 64}, {1000, 256}}) {
    for (const float slope : {0.0F, 0.1F}) {
      compare({.layout = layout, .type = GetParam(), .slope = slope});
    }
  }
}

TEST_P(NormalizedCopies, TakeEveryBitWidth) {
  for (int bits = 2; bits <= kMaxBits; ++bits) {
    for (int normalized_bits = 2; normalized_bits <= kMostNormalizedBits; ++normalized_bits) {
      compare({.layout = {130, 64},
               .type = GetParam(),
               .bits = bits,
               .normalized_bits = normalized_bits,
               .stochastic = bits != 4});
    }
  }
}

TEST_P(NormalizedCopies, AreKeptWithoutOthers) {
  for (const Layout layout : {Layout{130, 64}, Layout{19, 43}}) {
    compare({.layout = layout, .type = GetParam(), .bits = 0, .slope = 1.0F});
  }
}

TEST_P(NormalizedCopies, TakeMatricesLargerThanTheGridAndTensorsThatBeginAnywhere) {
  compare({.layout = {70'001, 64}, .type = GetParam()});
  compare({.layout = {20'011, 257}, .type = GetParam()});
  compare({.layout = {70, 48}, .type = GetParam(), .offset = 1});
}

TEST_P(NormalizedCopies, MarkGroupsThatAreNotFinite) {
  for (const Layout layout : {Layout{3000, 64}, Layout{300, 7}}) {
    compare({.layout = layout, .type = GetParam(), .special = true});
  }
}

}  // namespace
}  // namespace actnn::cuda
