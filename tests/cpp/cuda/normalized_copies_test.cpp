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
using Layout = ColumnLayout<int64_t>;

struct Shape {
  int64_t rows;
  int64_t channels;
};

constexpr RandomState kRandom{.seed = 7, .offset = 3};
constexpr RandomState kRandomOfNormalized{.seed = 7, .offset = 4};

/// A sum of a norm and a residual with an activation.
struct Problem {
  Shape shape;
  ElementType type;
  int bits = 3;  ///< of codes; 0: but for the masks, nothing is saved of the sum
  int normalized_bits = 2;
  FusedActivation activation = {ActivationFunction::kLeakyReLU, 0.0F};
  Rounding rounding = Rounding::kDithered;
  bool special = false;
  size_t offset = 0;

  Layout layout() const {
    return {shape.rows, shape.channels, kDefaultGroupRows, bits, mask_count(activation.function)};
  }
  Layout normalized_layout() const { return {shape.rows, shape.channels, kDefaultGroupRows, normalized_bits, 0}; }
  bool saves() const { return bits != 0 || layout().masks != 0; }
  bool keeps_below() const { return activation.slope != 0.0F; }
  std::vector<uint8_t> packed(const Layout& of, const RandomState& random) const {
    std::vector<uint8_t> bytes(static_cast<size_t>(of.bytes()));
    const PackedHeader header = PackedHeader::of(rounding == Rounding::kNearest ? RandomState{} : random, rounding);
    std::memcpy(bytes.data(), &header, sizeof header);
    return bytes;
  }

  std::vector<uint8_t> elements(unsigned seed) const {
    return as_elements(random_values(shape.rows * shape.channels, seed, special && seed == 3), type);
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

  Expected(const Problem& problem, const Channels& channels)
      : y(problem.elements(3).size()),
        packed(problem.saves() ? problem.packed(problem.layout(), kRandom) : std::vector<uint8_t>()),
        normalized(problem.packed(problem.normalized_layout(), kRandomOfNormalized)) {
    const std::vector<uint8_t> x = problem.elements(3);
    const std::vector<uint8_t> residual = problem.elements(5);
    const int64_t pieces = cpu::column_pieces(problem.layout());
    cpu::norm_act({.x = x.data(),
                   .residual = nullptr,
                   .y = nullptr,
                   .type = problem.type,
                   .layout = problem.normalized_layout(),
                   .channels = channels.norm.data(),
                   .activation = {},
                   .keeps_below = true,
                   .packed = normalized.data(),
                   .random = kRandomOfNormalized,
                   .rounding = problem.rounding},
                  0, pieces);
    cpu::norm_act({.x = x.data(),
                   .residual = residual.data(),
                   .y = y.data(),
                   .type = problem.type,
                   .layout = problem.layout(),
                   .channels = channels.sum.data(),
                   .activation = problem.activation,
                   .keeps_below = problem.keeps_below(),
                   .packed = packed.empty() ? nullptr : packed.data(),
                   .random = kRandom,
                   .rounding = problem.rounding},
                  0, pieces);
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
                  .layout = problem.layout(),
                  .channels = sum.data(),
                  .activation = problem.activation,
                  .keeps_below = problem.keeps_below(),
                  .packed = problem.saves() ? packed.as<uint8_t>() : nullptr,
                  .random = {.shift = kRandom},
                  .rounding = problem.rounding,
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
  const cpu::NormActBackward on_cpu{.packed = problem.saves() ? expected.packed.data() : nullptr,
                                    .layout = problem.layout(),
                                    .grad = grad.data(),
                                    .second_grad = nullptr,
                                    .type = problem.type,
                                    .activation = problem.activation,
                                    .normalized = expected.normalized.data(),
                                    .normalized_bits = problem.normalized_bits};
  const GpuBytes packed(expected.packed);
  const GpuBytes normalized(expected.normalized);
  const GpuBytes gpu_grad(grad, problem.shift());
  const NormActBackward on_gpu{.packed = problem.saves() ? packed.as<uint8_t>() : nullptr,
                               .layout = problem.layout(),
                               .grad = gpu_grad.as<void>(),
                               .second_grad = nullptr,
                               .type = problem.type,
                               .activation = problem.activation,
                               .normalized = normalized.as<uint8_t>(),
                               .normalized_bits = problem.normalized_bits};

  std::vector<uint8_t> expected_input(grad.size());
  std::vector<uint8_t> expected_sum(grad.size());
  cpu::norm_act_input_gradient(on_cpu, channels.gradient.data(), expected_input.data(), expected_sum.data(), 0,
                               cpu::column_pieces(problem.layout()));
  const GpuBytes grad_input(grad.size(), problem.shift());
  const GpuBytes grad_sum(grad.size(), problem.shift());
  const GpuArray<NormActGradient> gradient(channels.gradient);
  check(norm_act_input_gradient(on_gpu, gradient.data(), grad_input.as<void>(), grad_sum.as<void>(), nullptr));
  ASSERT_EQ(grad_input.read(), expected_input);
  ASSERT_EQ(grad_sum.read(), expected_sum);

  const auto count = static_cast<size_t>(problem.shape.channels);
  std::vector<double> expected_sums(count);
  std::vector<double> expected_copy_sums(count);
  cpu::norm_act_sums(on_cpu, channels.decode.data(), 0, problem.layout().blocks(), expected_sums.data(),
                     expected_copy_sums.data());
  const GpuArray<DecodeMap> decode(channels.decode);
  const GpuArray<float> scratch(norm_act_scratch(problem.shape.rows, problem.shape.channels, problem.type));
  const GpuArray<float> sums(problem.shape.channels);
  const GpuArray<float> copy_sums(problem.shape.channels);
  check(norm_act_sums(on_gpu, decode.data(), scratch.data(), sums.data(), copy_sums.data(), nullptr));
  for (size_t c = 0; c < count; ++c) {
    if (problem.special && !std::isfinite(expected_copy_sums[c])) {
      EXPECT_FALSE(std::isfinite(copy_sums.read()[c]));
      continue;
    }
    // Elements are of magnitude 10 at most.
    const double rows = static_cast<double>(problem.shape.rows);
    EXPECT_NEAR(sums.read()[c], expected_sums[c], 2e-5 * rows);
    EXPECT_NEAR(copy_sums.read()[c], expected_copy_sums[c], 2e-4 * rows);
  }
}

void compare(const Problem& problem) {
  SCOPED_TRACE(testing::Message() << problem.shape.rows << " x " << problem.shape.channels << ", " << problem.bits
                                  << " and " << problem.normalized_bits << " bits, slope " << problem.activation.slope);
  const Channels channels(problem.shape.channels);
  const Expected expected(problem, channels);
  compare_forward(problem, channels, expected);
  if (!testing::Test::HasFatalFailure()) {
    compare_backward(problem, channels, expected);
  }
}

using NormalizedCopies = GpuTestOf<ElementType>;
INSTANTIATE_TEST_SUITE_P(All, NormalizedCopies, testing::ValuesIn(kElementTypes));

constexpr FusedActivation kRelu{ActivationFunction::kLeakyReLU, 0.0F};
constexpr FusedActivation kLeaky{ActivationFunction::kLeakyReLU, 0.1F};

TEST_P(NormalizedCopies, AreThoseOfTheCpu) {
  for (const Shape shape : {Shape{1, 1}, {7, 3}, {33, 8}, {130, 16}, {265, 24}, {19, 43}, {530, 64}, {1000, 256}}) {
    for (const FusedActivation activation : {kRelu, kLeaky}) {
      compare({.shape = shape, .type = GetParam(), .activation = activation});
    }
  }
}

TEST_P(NormalizedCopies, TakeEveryBitWidth) {
  for (int bits = 0; bits < kMaxBits; ++bits) {
    for (int normalized_bits = 1; normalized_bits <= kMaxBits; ++normalized_bits) {
      compare({.shape = {130, 64},
               .type = GetParam(),
               .bits = bits,
               .normalized_bits = normalized_bits,
               .rounding = bits == 4 ? Rounding::kNearest : Rounding::kDithered});
    }
  }
}

TEST_P(NormalizedCopies, AreKeptWithoutOthers) {
  for (const Shape shape : {Shape{130, 64}, Shape{19, 43}}) {
    compare({.shape = shape, .type = GetParam(), .bits = 0, .activation = {}});
  }
}

TEST_P(NormalizedCopies, TakeMatricesLargerThanTheGridAndTensorsThatBeginAnywhere) {
  compare({.shape = {110'001, 64}, .type = GetParam()});
  compare({.shape = {24'011, 257}, .type = GetParam()});
  compare({.shape = {70, 48}, .type = GetParam(), .offset = 1});
}

TEST_P(NormalizedCopies, KeepElementsThatAreNotFiniteAlone) {
  for (const Shape shape : {Shape{1100, 64}, Shape{300, 7}}) {
    compare({.shape = shape, .type = GetParam(), .special = true});
  }
}

}  // namespace
}  // namespace actnn::cuda
