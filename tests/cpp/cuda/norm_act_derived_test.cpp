#include <cmath>
#include <tuple>

#include "actnn/cpu/norm_act.h"
#include "actnn/cuda/norm_act.h"
#include "tests/cpp/cpu/test_data.h"
#include "tests/cpp/cuda/gpu_test.h"

/// \file
/// Activations with packed derivatives: the bytes of the CPU.

namespace actnn::cuda {
namespace {

using enum ActivationFunction;
using cpu::as_elements;
using cpu::kElementTypes;
using cpu::random_values;
using Layout = SplitLayout<int64_t>;

constexpr Layout kLayouts[] = {{1, 1},   {7, 3},   {33, 8},  {130, 16}, {65, 24},   {19, 40},  {130, 64},
                               {9, 100}, {6, 256}, {5, 320}, {40, 129}, {3000, 64}, {500, 12}, {517, 2048}};

struct Problem {
  Layout layout;
  ElementType type;
  PackedDerivative derivative;
  int bits = 4;
  bool residual = false;
  bool keeps_below = true;
  bool stochastic = true;
  bool special = false;  ///< with infinities and NaNs
  size_t offset = 0;     ///< elements of memory before each matrix
  bool has_kink = derivative.function == kReLU6;

  int planes() const { return bits + derivative.bits; }
  size_t shift() const { return offset * static_cast<size_t>(element_size(type)); }
  std::vector<uint8_t> elements(unsigned seed) const {
    std::vector<float> values = random_values(layout.rows * layout.channels, seed, special && seed == 3);
    for (float& value : values) {
      value *= 3.0F;
    }
    return as_elements(values, type);
  }
};

struct Channels {
  std::vector<NormActChannel> forward;
  std::vector<DecodeMap> decode;
  std::vector<NormActGradient> gradient;

  explicit Channels(const Problem& problem) {
    constexpr float kWeights[] = {1.0F, -0.7F, 0.0F, 1e-3F, 2.5F, 0.3F};
    constexpr float kBiases[] = {0.1F, -0.4F, 2.5F, 0.7F, 0.0F};
    for (int64_t c = 0; c < problem.layout.channels; ++c) {
      const float weight = c < 16 && problem.layout.channels > 16 ? 2.0F : kWeights[c % 6];
      const float bias = kBiases[c % 5];
      forward.push_back(forward_channel(0.2F, 1.25F, weight, bias, problem.has_kink));
      decode.push_back(decode_map(weight, bias, problem.has_kink));
      gradient.push_back(gradient_channel(decode.back(), weight, 1.25F, 0.03F, -0.02F));
    }
  }
};

constexpr RandomState kRandom{.seed = 7, .offset = 3};

/// Both packed tensors are equal; the CPU's is returned.
std::vector<uint8_t> compare_forward(const Problem& problem, const Channels& channels) {
  const std::vector<uint8_t> x = problem.elements(3);
  const std::vector<uint8_t> residual = problem.elements(5);
  std::vector<uint8_t> expected(problem.planes() == 0 ? 0
                                                      : static_cast<size_t>(problem.layout.bytes(problem.planes())));
  std::vector<uint8_t> expected_y(x.size());
  cpu::norm_act({.x = x.data(),
                 .residual = problem.residual ? residual.data() : nullptr,
                 .y = expected_y.data(),
                 .type = problem.type,
                 .layout = problem.layout,
                 .channels = channels.forward.data(),
                 .slope = 1.0F,
                 .bits = problem.bits,
                 .keeps_below = problem.keeps_below,
                 .packed = expected.data(),
                 .random = kRandom,
                 .stochastic = problem.stochastic,
                 .derivative = problem.derivative},
                0, problem.layout.groups());
  const GpuBytes gpu_x(x, problem.shift());
  const GpuBytes gpu_residual(residual, problem.shift());
  const GpuBytes y(expected_y.size(), problem.shift());
  const GpuBytes packed(expected.size());
  const GpuArray<NormActChannel> forward_channels(channels.forward);
  check(norm_act({.x = gpu_x.as<void>(),
                  .residual = problem.residual ? gpu_residual.as<void>() : nullptr,
                  .y = y.as<void>(),
                  .type = problem.type,
                  .layout = problem.layout,
                  .channels = forward_channels.data(),
                  .slope = 1.0F,
                  .bits = problem.bits,
                  .keeps_below = problem.keeps_below,
                  .packed = packed.as<uint8_t>(),
                  .random = {.shift = kRandom},
                  .stochastic = problem.stochastic,
                  .derivative = problem.derivative},
                 nullptr));
  EXPECT_EQ(y.read(), expected_y);
  EXPECT_EQ(packed.read(), expected);
  return expected;
}

/// A backward on the CPU and on the GPU, on equal data.
struct Backwards {
  cpu::NormActBackward on_cpu;
  NormActBackward on_gpu;
};

void compare_gradients(const Problem& problem, const Backwards& backwards, const Channels& channels, size_t size) {
  std::vector<uint8_t> expected(size);
  std::vector<uint8_t> expected_sum(size);
  cpu::norm_act_input_gradient(backwards.on_cpu, channels.gradient.data(), expected.data(), expected_sum.data(), 0,
                               problem.layout.groups());
  const GpuArray<NormActGradient> gradient(channels.gradient);
  const GpuBytes result(size, problem.shift());
  const GpuBytes sum(size, problem.shift());
  check(norm_act_input_gradient(backwards.on_gpu, gradient.data(), result.as<void>(), sum.as<void>(), nullptr));
  ASSERT_EQ(result.read(), expected);
  ASSERT_EQ(sum.read(), expected_sum);
  check(norm_act_input_gradient(backwards.on_gpu, gradient.data(), result.as<void>(), nullptr, nullptr));
  ASSERT_EQ(result.read(), expected);
}

void compare_sums(const Problem& problem, const Backwards& backwards, const Channels& channels) {
  const auto count = static_cast<size_t>(problem.layout.channels);
  std::vector<double> expected(count);
  std::vector<double> expected_copies(count);
  cpu::norm_act_sums(backwards.on_cpu, channels.decode.data(), 0, problem.layout.row_blocks(), expected.data(),
                     expected_copies.data());
  const GpuArray<DecodeMap> decode(channels.decode);
  const GpuArray<float> scratch(norm_act_scratch(problem.layout));
  const GpuArray<float> sums(problem.layout.channels);
  const GpuArray<float> copy_sums(problem.layout.channels);
  check(norm_act_sums(backwards.on_gpu, decode.data(), scratch.data(), sums.data(), copy_sums.data(), nullptr));
  const std::vector<float> actual = sums.read();
  const std::vector<float> actual_copies = copy_sums.read();
  // Elements are at most 30 or so, copies 40.
  const double error = 1e-6 * static_cast<double>(problem.layout.rows);
  for (size_t c = 0; c < count; ++c) {
    if (std::isfinite(expected[c]) && std::isfinite(expected_copies[c])) {
      EXPECT_NEAR(actual[c], expected[c], 30 * error) << "channel " << c;
      EXPECT_NEAR(actual_copies[c], expected_copies[c], 1200 * error) << "channel " << c;
    } else {
      EXPECT_FALSE(std::isfinite(actual[c]) && std::isfinite(actual_copies[c])) << "channel " << c;
    }
  }
}

void compare(const Problem& problem) {
  SCOPED_TRACE(testing::Message() << problem.layout.rows << " x " << problem.layout.channels << ", " << problem.bits
                                  << " + " << problem.derivative.bits << " bits, type "
                                  << static_cast<int>(problem.type) << ", function "
                                  << static_cast<int>(problem.derivative.function) << ", offset " << problem.offset);
  const Channels channels(problem);
  const std::vector<uint8_t> bytes = compare_forward(problem, channels);
  if (problem.derivative.bits == 0 || testing::Test::HasFailure()) {
    return;
  }
  const GpuBytes packed(bytes);
  const std::vector<uint8_t> input = problem.elements(3);
  const std::vector<uint8_t> grad = problem.elements(8);
  const std::vector<uint8_t> second = problem.elements(9);
  const GpuBytes x(input, problem.shift());
  const GpuBytes gpu_grad(grad, problem.shift());
  const GpuBytes gpu_second(second, problem.shift());
  const GpuArray<NormActChannel> channels_of_x(channels.forward);
  Backwards backwards{.on_cpu = {.packed = bytes.data(),
                                 .bits = problem.bits,
                                 .grad = grad.data(),
                                 .second_grad = problem.residual ? second.data() : nullptr,
                                 .type = problem.type,
                                 .layout = problem.layout,
                                 .slope = 1.0F,
                                 .derivative = problem.derivative},
                      .on_gpu = {.packed = packed.as<uint8_t>(),
                                 .bits = problem.bits,
                                 .grad = gpu_grad.as<void>(),
                                 .second_grad = problem.residual ? gpu_second.as<void>() : nullptr,
                                 .type = problem.type,
                                 .layout = problem.layout,
                                 .slope = 1.0F,
                                 .derivative = problem.derivative}};
  if (problem.bits != 0) {
    compare_gradients(problem, backwards, channels, grad.size());
    compare_sums(problem, backwards, channels);
  }
  if (problem.bits != 0 && gives_output(problem.derivative.function)) {
    const GpuArray<DecodeMap> decode(channels.decode);
    const GpuBytes result(grad.size(), problem.shift());
    std::vector<uint8_t> expected(grad.size());
    cpu::norm_act_output(backwards.on_cpu, channels.decode.data(), expected.data(), 0, problem.layout.groups());
    check(norm_act_output(backwards.on_gpu, decode.data(), result.as<void>(), nullptr));
    ASSERT_EQ(result.read(), expected);
  }
  backwards.on_cpu.x = input.data();
  backwards.on_cpu.channels_of_x = channels.forward.data();
  backwards.on_gpu.x = x.as<void>();
  backwards.on_gpu.channels_of_x = channels_of_x.data();
  compare_gradients(problem, backwards, channels, grad.size());
  compare_sums(problem, backwards, channels);
}

class NormActDerived : public GpuTestOf<std::tuple<ElementType, ActivationFunction>> {
 public:
  ElementType type() const { return std::get<0>(GetParam()); }
  PackedDerivative derivative(int bits) const {
    const ActivationFunction function = std::get<1>(GetParam());
    return {function, function == kReLU6 ? std::min(bits, 1) : bits};
  }
};
INSTANTIATE_TEST_SUITE_P(All, NormActDerived,
                         testing::Combine(testing::ValuesIn(kElementTypes),
                                          testing::Values(kReLU6, kSiLU, kHardswish)));

TEST_P(NormActDerived, GivesTheBytesOfTheCpu) {
  int bits = 2;
  for (const Layout layout : kLayouts) {
    compare({.layout = layout, .type = type(), .derivative = derivative(bits % 7 + 1), .bits = bits});
    bits = bits == 8 ? 2 : bits + 1;
  }
}

TEST_P(NormActDerived, TakesEveryBitWidthAndKindOfInput) {
  for (const Layout layout : {Layout{130, 64}, Layout{65, 24}, Layout{19, 43}}) {
    for (int bits = 1; bits <= 7; ++bits) {
      for (const bool residual : {false, true}) {
        for (const bool keeps_below : {false, true}) {
          compare({.layout = layout,
                   .type = type(),
                   .derivative = derivative(bits),
                   .bits = bits == 1 ? 0 : bits,
                   .residual = residual,
                   .keeps_below = keeps_below,
                   .stochastic = bits != 5});
        }
      }
    }
  }
}

TEST_P(NormActDerived, TakesInfinitiesAndNaNs) {
  for (const Layout layout : {Layout{130, 64}, Layout{65, 24}, Layout{19, 43}}) {
    for (const bool residual : {false, true}) {
      compare({.layout = layout, .type = type(), .derivative = derivative(3), .residual = residual, .special = true});
    }
  }
}

TEST_P(NormActDerived, TakesMemoryThatIsNotAligned) {
  compare({.layout = {130, 64}, .type = type(), .derivative = derivative(4), .offset = 1});
}

TEST_P(NormActDerived, PacksNothingWithoutBits) {
  compare({.layout = {130, 64}, .type = type(), .derivative = derivative(0), .bits = 0});
}

/// Channels of both kinds beside each other.
TEST_P(NormActDerived, TakesChannelsOfEveryKind) {
  for (const bool has_kink : {false, true}) {
    compare({.layout = {130, 64}, .type = type(), .derivative = derivative(4), .has_kink = has_kink});
  }
}

}  // namespace
}  // namespace actnn::cuda
