#include "actnn/cuda/norm_act.h"

#include <cmath>

#include "actnn/cpu/norm_act.h"
#include "tests/cpp/cpu/test_data.h"
#include "tests/cpp/cuda/gpu_test.h"

namespace actnn::cuda {
namespace {

using cpu::as_elements;
using cpu::kElementTypes;
using cpu::random_values;
using Layout = ColumnLayout<int64_t>;

/// Rows and channels of a matrix.
struct Shape {
  int64_t rows;
  int64_t channels;
};

/// Octets, words, groups and tiles that are not whole, strips of every width, more strips than one.
constexpr Shape kShapes[] = {{1, 1},   {7, 3},   {33, 8},  {130, 16}, {65, 24},   {19, 40},  {130, 64},  {9, 100},
                             {6, 256}, {5, 320}, {70, 24}, {40, 129}, {1100, 64}, {500, 12}, {520, 256}, {265, 600}};

/// Channels of every kind: weights of both signs, tiny ones, 0; kinks near, far, and on either side. Or all of one
/// kind, which kernels treat by themselves.
enum class Kinds { kAll, kSplit, kLinear };

struct Channels {
  std::vector<NormActChannel> forward;
  std::vector<DecodeMap> decode;
  std::vector<NormActGradient> gradient;

  explicit Channels(int64_t count, Kinds kinds = Kinds::kAll) {
    constexpr float kWeights[] = {1.0F, -0.7F, 0.0F, 1e-3F, 2.5F, -1e-6F, 0.3F};
    constexpr float kBiases[] = {0.1F, -0.4F, 0.5F, 0.7F, 0.0F, -0.2F, 2.0F, -0.5F, 1.5F};
    for (int64_t c = 0; c < count; ++c) {
      const float weight = kWeights[c % 7];
      const float bias = kBiases[c % 9];
      // The first octets have split channels only.
      const bool is_split = kinds == Kinds::kSplit || (c < 16 && count > 16);
      const float used_weight = !is_split ? weight : c % 2 == 0 ? 0.8F : -1.7F;
      const bool has_kink = kinds != Kinds::kLinear;
      forward.push_back(forward_channel(0.2F, 1.25F, used_weight, bias, has_kink));
      decode.push_back(decode_map(used_weight, bias, has_kink));
      gradient.push_back(gradient_channel(decode.back(), used_weight, 1.25F, 0.03F, -0.02F));
    }
  }
};

struct Problem {
  Shape shape;
  ElementType type;
  int bits = 3;  ///< of codes
  FusedActivation activation = {ActivationFunction::kLeakyReLU, 0.0F};
  int64_t group_rows = kDefaultGroupRows;
  bool residual = false;
  bool second = false;
  bool keeps_below = true;
  Rounding rounding = Rounding::kDithered;
  bool special = false;  ///< with infinities and NaNs
  size_t offset = 0;     ///< elements of memory before each matrix
  Kinds kinds = Kinds::kAll;
  float scale = 1.0F;

  Layout layout() const { return {shape.rows, shape.channels, group_rows, bits, mask_count(activation.function)}; }
  int64_t pieces() const { return cpu::column_pieces(layout()); }
  bool saves() const { return layout().bits != 0 || layout().masks != 0; }

  std::vector<uint8_t> elements(unsigned seed) const {
    std::vector<float> values = random_values(shape.rows * shape.channels, seed, special && seed == 3);
    for (float& value : values) {
      value *= scale;
    }
    return as_elements(values, type);
  }
  size_t shift() const { return offset * static_cast<size_t>(element_size(type)); }
};

constexpr RandomState kRandom{.seed = 7, .offset = 3};

/// Header, and zeros between parameters and codes, are not written by the CPU's kernels.
std::vector<uint8_t> empty_packed(const Layout& layout, const RandomState& random, Rounding rounding) {
  std::vector<uint8_t> packed(static_cast<size_t>(layout.bytes()));
  const PackedHeader header = PackedHeader::of(rounding == Rounding::kNearest ? RandomState{} : random, rounding);
  std::memcpy(packed.data(), &header, sizeof header);
  return packed;
}

std::vector<uint8_t> forward_of_cpu(const Problem& problem, const Channels& channels, std::vector<uint8_t>& y) {
  const std::vector<uint8_t> x = problem.elements(3);
  const std::vector<uint8_t> residual = problem.elements(5);
  std::vector<uint8_t> packed;
  if (problem.saves()) {
    packed = empty_packed(problem.layout(), kRandom, problem.rounding);
  }
  y.resize(x.size());
  cpu::norm_act({.x = x.data(),
                 .residual = problem.residual ? residual.data() : nullptr,
                 .y = y.data(),
                 .type = problem.type,
                 .layout = problem.layout(),
                 .channels = channels.forward.data(),
                 .activation = problem.activation,
                 .keeps_below = problem.keeps_below,
                 .packed = problem.saves() ? packed.data() : nullptr,
                 .random = kRandom,
                 .rounding = problem.rounding},
                0, problem.pieces());
  return packed;
}

void expect_near(const std::vector<float>& actual, const std::vector<double>& expected,
                 const std::vector<double>& magnitudes) {
  for (size_t c = 0; c < actual.size(); ++c) {
    if (std::isfinite(expected[c])) {
      // Copies may be too large for float16, in which magnitudes are judged.
      const double allowed = std::isfinite(magnitudes[c]) ? 2e-6 * magnitudes[c] : 1e-5 * std::abs(expected[c]);
      EXPECT_NEAR(actual[c], expected[c], allowed) << "channel " << c;
    } else {
      EXPECT_FALSE(std::isfinite(actual[c])) << "channel " << c;
    }
  }
}

std::vector<float> floats_of(const std::vector<uint8_t>& elements, ElementType type) {
  std::vector<float> floats;
  with_element_type(type, [&]<class Element>(Element /*tag*/) {
    for (size_t i = 0; i < elements.size(); i += sizeof(Element)) {
      Element element;
      std::memcpy(&element, elements.data() + i, sizeof element);
      floats.push_back(to_float(element));
    }
  });
  return floats;
}

/// The copies as the CPU reads them, rounded to the type.
std::vector<float> copies_of(const Problem& problem, const std::vector<uint8_t>& packed,
                             std::vector<DecodeMap> channels) {
  for (DecodeMap& channel : channels) {
    channel.a = 1.0F;
    channel.b = 0.0F;
  }
  std::vector<uint8_t> copies(problem.elements(3).size());
  cpu::norm_act_output({.packed = packed.data(),
                        .layout = problem.layout(),
                        .grad = nullptr,
                        .second_grad = nullptr,
                        .type = problem.type,
                        .activation = {ActivationFunction::kIdentity}},
                       channels.data(), copies.data(), 0, problem.pieces());
  return floats_of(copies, problem.type);
}

/// Sums of the magnitudes of what the CPU adds up, which bound the errors of sums.
void magnitudes_of_sums(const Problem& problem, const std::vector<float>& g, const std::vector<float>& h,
                        const std::vector<float>& copies, std::vector<double>& sums, std::vector<double>& copy_sums) {
  const auto count = static_cast<size_t>(problem.shape.channels);
  sums.assign(count, 1e-30);
  copy_sums.assign(count, 1e-30);
  for (size_t i = 0; i < g.size(); ++i) {
    const double magnitude = std::abs(g[i]) + (problem.second ? std::abs(h[i]) : 0.0);
    sums[i % count] += magnitude;
    copy_sums[i % count] += magnitude * std::abs(copies[i]);
  }
}

/// A backward on the CPU and on the GPU, on equal data.
struct Backwards {
  cpu::NormActBackward on_cpu;
  NormActBackward on_gpu;
  std::vector<float> copies;  ///< to judge errors of sums
};

/// The input's gradient and, perhaps in the places of x and the gradient, that of a sum.
void compare_gradients(const Problem& problem, const Backwards& backwards, const Channels& channels) {
  const std::vector<uint8_t> grad = problem.elements(8);
  const GpuArray<NormActGradient> gradient(channels.gradient);
  std::vector<uint8_t> expected(grad.size());
  std::vector<uint8_t> expected_sum(grad.size());
  cpu::norm_act_input_gradient(backwards.on_cpu, channels.gradient.data(), expected.data(), expected_sum.data(), 0,
                               problem.pieces());

  const GpuBytes result(grad.size(), problem.shift());
  const GpuBytes sum(grad.size(), problem.shift());
  check(norm_act_input_gradient(backwards.on_gpu, gradient.data(), result.as<void>(), nullptr, nullptr));
  ASSERT_EQ(result.read(), expected);
  if (is_smooth(problem.activation.function)) {
    return;  // nothing is added behind it
  }
  check(norm_act_input_gradient(backwards.on_gpu, gradient.data(), result.as<void>(), sum.as<void>(), nullptr));
  ASSERT_EQ(result.read(), expected);
  ASSERT_EQ(sum.read(), expected_sum);

  const GpuBytes x(problem.elements(3), problem.shift());
  const GpuBytes own_grad(grad, problem.shift());
  NormActBackward in_place = backwards.on_gpu;
  in_place.grad = own_grad.as<void>();
  in_place.x = in_place.x ? x.as<void>() : nullptr;
  check(norm_act_input_gradient(in_place, gradient.data(), x.as<void>(), own_grad.as<void>(), nullptr));
  ASSERT_EQ(x.read(), expected);
  ASSERT_EQ(own_grad.read(), expected_sum);
}

void compare_sums(const Problem& problem, const Backwards& backwards, const Channels& channels) {
  const auto count = static_cast<size_t>(problem.shape.channels);
  std::vector<double> expected_sums(count);
  std::vector<double> expected_copy_sums(count);
  cpu::norm_act_sums(backwards.on_cpu, channels.decode.data(), 0, problem.layout().blocks(), expected_sums.data(),
                     expected_copy_sums.data());
  const GpuArray<DecodeMap> decode(channels.decode);
  const GpuArray<float> scratch(norm_act_scratch(problem.shape.rows, problem.shape.channels, problem.type));
  const GpuArray<float> sums(problem.shape.channels);
  const GpuArray<float> copy_sums(problem.shape.channels);
  check(norm_act_sums(backwards.on_gpu, decode.data(), scratch.data(), sums.data(), copy_sums.data(), nullptr));
  std::vector<double> magnitudes;
  std::vector<double> copy_magnitudes;
  magnitudes_of_sums(problem, floats_of(problem.elements(8), problem.type),
                     floats_of(problem.elements(9), problem.type), backwards.copies, magnitudes, copy_magnitudes);
  expect_near(sums.read(), expected_sums, magnitudes);
  expect_near(copy_sums.read(), expected_copy_sums, copy_magnitudes);

  const std::vector<float> first[] = {sums.read(), copy_sums.read()};
  check(norm_act_sums(backwards.on_gpu, decode.data(), scratch.data(), sums.data(), copy_sums.data(), nullptr));
  const std::vector<float> again[] = {sums.read(), copy_sums.read()};
  for (size_t c = 0; c < count; ++c) {
    ASSERT_EQ(bits_of(again[0][c]), bits_of(first[0][c]));
    ASSERT_EQ(bits_of(again[1][c]), bits_of(first[1][c]));
  }
}

/// The copies that are computed from x.
std::vector<float> copies_of_input(const std::vector<float>& x, const std::vector<NormActChannel>& channels) {
  std::vector<float> copies;
  for (size_t i = 0; i < x.size(); ++i) {
    const NormActChannel& channel = channels[i % channels.size()];
    copies.push_back(channel.s_scale * x[i] + channel.s_shift);
  }
  return copies;
}

void compare_forward(const Problem& problem) {
  const Channels channels(problem.shape.channels, problem.kinds);
  std::vector<uint8_t> expected_y;
  const std::vector<uint8_t> expected = forward_of_cpu(problem, channels, expected_y);

  const GpuBytes x(problem.elements(3), problem.shift());
  const GpuBytes residual(problem.elements(5), problem.shift());
  const GpuBytes y(expected_y.size(), problem.shift());
  const GpuBytes packed(expected.size());
  const GpuArray<NormActChannel> forward_channels(channels.forward);
  check(norm_act({.x = x.as<void>(),
                  .residual = problem.residual ? residual.as<void>() : nullptr,
                  .y = y.as<void>(),
                  .type = problem.type,
                  .layout = problem.layout(),
                  .channels = forward_channels.data(),
                  .activation = problem.activation,
                  .keeps_below = problem.keeps_below,
                  .packed = problem.saves() ? packed.as<uint8_t>() : nullptr,
                  .random = {.shift = kRandom},
                  .rounding = problem.rounding},
                 nullptr));
  ASSERT_EQ(y.read(), expected_y);
  ASSERT_EQ(packed.read(), expected);
}

/// All passes, on the CPU and on the GPU.
void compare(const Problem& problem) {
  SCOPED_TRACE(testing::Message() << problem.shape.rows << " x " << problem.shape.channels << ", " << problem.bits
                                  << " bits, type " << static_cast<int>(problem.type) << ", function "
                                  << static_cast<int>(problem.activation.function) << ", slope "
                                  << problem.activation.slope << ", groups of " << problem.group_rows << ", offset "
                                  << problem.offset);
  compare_forward(problem);
  if (testing::Test::HasFatalFailure()) {
    return;
  }

  const Channels channels(problem.shape.channels, problem.kinds);
  std::vector<uint8_t> expected_y;
  const std::vector<uint8_t> expected = forward_of_cpu(problem, channels, expected_y);
  const GpuBytes packed(expected);
  const GpuArray<NormActChannel> forward_channels(channels.forward);
  const std::vector<uint8_t> input = problem.elements(3);
  const std::vector<uint8_t> grad = problem.elements(8);
  const std::vector<uint8_t> second = problem.elements(9);
  const GpuBytes x(input, problem.shift());
  const GpuBytes gpu_grad(grad, problem.shift());
  const GpuBytes gpu_second(second, problem.shift());
  Backwards backwards{.on_cpu = {.packed = expected.data(),
                                 .layout = problem.layout(),
                                 .grad = grad.data(),
                                 .second_grad = problem.second ? second.data() : nullptr,
                                 .type = problem.type,
                                 .activation = problem.activation},
                      .on_gpu = {.packed = packed.as<uint8_t>(),
                                 .layout = problem.layout(),
                                 .grad = gpu_grad.as<void>(),
                                 .second_grad = problem.second ? gpu_second.as<void>() : nullptr,
                                 .type = problem.type,
                                 .activation = problem.activation},
                      .copies = {}};
  if (problem.bits != 0) {
    backwards.copies = copies_of(problem, expected, channels.decode);
    const GpuArray<DecodeMap> decode(channels.decode);
    const GpuBytes result(grad.size(), problem.shift());
    std::vector<uint8_t> expected_result(grad.size());
    cpu::norm_act_output(backwards.on_cpu, channels.decode.data(), expected_result.data(), 0, problem.pieces());
    check(norm_act_output(backwards.on_gpu, decode.data(), result.as<void>(), nullptr));
    ASSERT_EQ(result.read(), expected_result);
    compare_gradients(problem, backwards, channels);
    compare_sums(problem, backwards, channels);
  }

  backwards.on_cpu.x = input.data();
  backwards.on_cpu.channels_of_x = channels.forward.data();
  backwards.on_gpu.x = x.as<void>();
  backwards.on_gpu.channels_of_x = forward_channels.data();
  backwards.copies = copies_of_input(floats_of(input, problem.type), channels.forward);
  compare_gradients(problem, backwards, channels);
  compare_sums(problem, backwards, channels);
  if (problem.layout().masks == 0) {
    backwards.on_cpu.packed = nullptr;
    backwards.on_gpu.packed = nullptr;
    compare_gradients(problem, backwards, channels);
    compare_sums(problem, backwards, channels);
  }
}

using NormAct = GpuTestOf<ElementType>;
INSTANTIATE_TEST_SUITE_P(All, NormAct, testing::ValuesIn(kElementTypes));

constexpr FusedActivation kRelu{ActivationFunction::kLeakyReLU, 0.0F};
constexpr FusedActivation kLeaky{ActivationFunction::kLeakyReLU, 0.1F};
constexpr FusedActivation kIdentity{ActivationFunction::kIdentity};
constexpr FusedActivation kRelu6{ActivationFunction::kReLU6};
constexpr FusedActivation kSilu{ActivationFunction::kSiLU};
constexpr FusedActivation kHardswish{ActivationFunction::kHardswish};

Kinds kinds_of(const FusedActivation& activation) {
  return has_kink(activation.function) ? Kinds::kAll : Kinds::kLinear;
}

TEST_P(NormAct, GivesTheBytesOfTheCpu) {
  int bits = 1;
  for (const Shape shape : kShapes) {
    for (const FusedActivation activation : {kRelu, kLeaky, kIdentity, kRelu6, kSilu, kHardswish}) {
      compare(
          {.shape = shape, .type = GetParam(), .bits = bits, .activation = activation, .kinds = kinds_of(activation)});
      bits = bits == 7 ? 1 : bits + 1;
    }
  }
}

TEST_P(NormAct, TakesEveryBitWidthAndKindOfInput) {
  for (const Shape shape : {Shape{130, 64}, Shape{665, 24}, Shape{19, 43}}) {
    for (int bits = 1; bits <= 7; ++bits) {
      for (const bool residual : {false, true}) {
        for (const bool keeps_below : {false, true}) {
          compare({.shape = shape,
                   .type = GetParam(),
                   .bits = bits,
                   .activation = keeps_below ? kLeaky : kRelu,
                   .group_rows = bits % 3 == 0   ? 64
                                 : bits % 3 == 1 ? 128
                                                 : 256,
                   .residual = residual,
                   .second = residual,
                   .keeps_below = keeps_below,
                   .rounding = bits == 5   ? Rounding::kNearest
                               : bits == 6 ? Rounding::kStochastic
                                           : Rounding::kDithered});
        }
      }
    }
    compare({.shape = shape, .type = GetParam(), .bits = 8, .activation = kIdentity, .kinds = Kinds::kLinear});
  }
}

TEST_P(NormAct, TakesChannelsOfOneKind) {
  for (const Shape shape : {Shape{130, 64}, Shape{65, 24}, Shape{19, 43}, Shape{1001, 256}}) {
    for (const bool keeps_below : {false, true}) {
      for (const bool special : {false, true}) {
        compare({.shape = shape,
                 .type = GetParam(),
                 .residual = !keeps_below,
                 .second = !keeps_below,
                 .keeps_below = keeps_below,
                 .special = special,
                 .kinds = Kinds::kSplit});
      }
    }
    for (const bool special : {false, true}) {
      compare(
          {.shape = shape, .type = GetParam(), .activation = kIdentity, .special = special, .kinds = Kinds::kLinear});
    }
  }
}

TEST_P(NormAct, TakesNumbersOfAnySize) {
  for (const float scale : {1e36F, 1e30F, 1e-4F, 1e-30F, 1e-38F}) {
    for (const Kinds kinds : {Kinds::kAll, Kinds::kSplit}) {
      SCOPED_TRACE(scale);
      compare_forward({.shape = {300, 64}, .type = GetParam(), .residual = true, .kinds = kinds, .scale = scale});
    }
  }
}

TEST_P(NormAct, WalksOverMatricesLargerThanTheGrid) {
  compare({.shape = {110'001, 64}, .type = GetParam()});
  compare({.shape = {45'000, 136}, .type = GetParam(), .residual = true, .second = true});
  compare({.shape = {24'011, 257}, .type = GetParam()});
}

TEST_P(NormAct, KeepsMasksOrNothingWithoutBits) {
  for (const Shape shape : {Shape{9'001, 64}, Shape{19, 43}}) {
    for (const FusedActivation activation : {kRelu, kRelu6, kIdentity}) {
      compare({.shape = shape, .type = GetParam(), .bits = 0, .activation = activation, .residual = true});
    }
    compare({.shape = shape, .type = GetParam(), .bits = 0, .activation = kSilu, .kinds = Kinds::kLinear});
  }
}

TEST_P(NormAct, TakesTensorsThatBeginAnywhere) {
  for (const size_t offset : {1, 2, 3, 4, 8}) {
    compare({.shape = {70, 48}, .type = GetParam(), .residual = true, .second = true, .offset = offset});
  }
}

TEST_P(NormAct, KeepsElementsThatAreNotFiniteAlone) {
  for (const Shape shape : {Shape{1100, 64}, Shape{70, 24}, Shape{300, 7}}) {
    for (const FusedActivation activation : {kRelu, kLeaky, kRelu6, kSilu}) {
      for (const bool keeps_below : {false, true}) {
        for (const int bits : {1, 4}) {
          compare({.shape = shape,
                   .type = GetParam(),
                   .bits = bits,
                   .activation = activation,
                   .residual = activation.function == ActivationFunction::kLeakyReLU && activation.slope == 0.0F,
                   .keeps_below = keeps_below,
                   .special = true,
                   .kinds = kinds_of(activation)});
        }
      }
    }
  }
}

TEST_P(NormAct, DoesNothingWithoutRows) {
  const GpuArray<float> mean(std::vector<float>{1, 2, 3});
  const GpuArray<float> variance(std::vector<float>{1, 2, 3});
  EXPECT_EQ(norm_act_scratch(0, 3, GetParam()), 0);
  check(channel_moments(nullptr, GetParam(), 0, 3, nullptr, mean.data(), variance.data(), nullptr));
  EXPECT_EQ(mean.read(), std::vector<float>(3, 0.0F));
  EXPECT_EQ(variance.read(), std::vector<float>(3, 0.0F));
  NormActForward forward{};
  forward.type = GetParam();
  forward.layout = {0, 3, kDefaultGroupRows, 3, 0};
  check(norm_act(forward, nullptr));
  NormActBackward backward{};
  backward.type = GetParam();
  backward.layout = forward.layout;
  check(norm_act_sums(backward, nullptr, nullptr, mean.data(), variance.data(), nullptr));
  EXPECT_EQ(mean.read(), std::vector<float>(3, 0.0F));
  check(norm_act_input_gradient(backward, nullptr, nullptr, nullptr, nullptr));
  check(norm_act_output(backward, nullptr, nullptr, nullptr));
}

TEST_P(NormAct, MomentsAreThoseOfTheRows) {
  for (const Shape shape : kShapes) {
    for (const float offset : {0.0F, 1000.0F}) {
      SCOPED_TRACE(testing::Message() << shape.rows << " x " << shape.channels << " around " << offset);
      std::vector<float> values = random_values(shape.rows * shape.channels, 4, false);
      for (float& value : values) {
        value += offset;
      }
      values[0] = 0.0F;  // far from the others
      const std::vector<uint8_t> elements = as_elements(values, GetParam());
      const auto count = static_cast<size_t>(shape.channels);
      std::vector<double> expected_mean(count);
      std::vector<double> expected_variance(count);
      with_element_type(GetParam(), [&]<class Element>(Element /*tag*/) {
        std::vector<double> numbers(values.size());
        for (size_t i = 0; i < numbers.size(); ++i) {
          Element element;
          std::memcpy(&element, elements.data() + i * sizeof element, sizeof element);
          numbers[i] = to_float(element);
          expected_mean[i % count] += numbers[i] / static_cast<double>(shape.rows);
        }
        for (size_t i = 0; i < numbers.size(); ++i) {
          const double distance = numbers[i] - expected_mean[i % count];
          expected_variance[i % count] += distance * distance / static_cast<double>(shape.rows);
        }
      });
      for (const size_t shift : {0, 1}) {
        const GpuBytes x(elements, shift * static_cast<size_t>(element_size(GetParam())));
        const GpuArray<float> scratch(norm_act_scratch(shape.rows, shape.channels, GetParam()));
        const GpuArray<float> mean(shape.channels);
        const GpuArray<float> variance(shape.channels);
        const auto run = [&] {
          check(channel_moments(x.as<void>(), GetParam(), shape.rows, shape.channels, scratch.data(), mean.data(),
                                variance.data(), nullptr));
          return std::pair(mean.read(), variance.read());
        };
        const auto [means, variances] = run();
        for (size_t c = 0; c < count; ++c) {
          EXPECT_NEAR(means[c], expected_mean[c], 1e-6 * (1.0 + std::abs(expected_mean[c]))) << "channel " << c;
          EXPECT_NEAR(variances[c], expected_variance[c], 1e-4 * expected_variance[c] + 1e-6) << "channel " << c;
        }
        EXPECT_EQ(run(), std::pair(means, variances));
      }
    }
  }
}

}  // namespace
}  // namespace actnn::cuda
