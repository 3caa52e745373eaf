#include "actnn/cuda/norm_act_channels.h"

#include "tests/cpp/cpu/test_data.h"
#include "tests/cpp/cuda/gpu_test.h"

namespace actnn::cuda {
namespace {

using cpu::as_elements;
using cpu::kElementTypes;
using cpu::random_values;

struct Shape {
  int64_t rows;
  int64_t channels;
};

constexpr Shape kShapes[] = {{2, 1}, {7, 3}, {130, 16}, {65, 24}, {9, 100}, {3000, 64}, {517, 2048}};
constexpr float kEps = 1e-3F;

template <class T>
std::vector<uint8_t> bytes_of(const GpuArray<T>& array) {
  const std::vector<T> values = array.read();
  const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
  return {bytes, bytes + values.size() * sizeof(T)};
}

/// The numbers of channels that forward needs.
struct ForwardCoefficients {
  GpuArray<NormActChannel> forward;
  GpuArray<DecodeMap> decode;
  GpuArray<float> rstd;

  explicit ForwardCoefficients(int64_t channels) : forward(channels), decode(channels), rstd(channels) {}
};

void expect_equal(const ForwardCoefficients& actual, const ForwardCoefficients& expected) {
  EXPECT_EQ(bytes_of(actual.forward), bytes_of(expected.forward));
  EXPECT_EQ(bytes_of(actual.decode), bytes_of(expected.decode));
  EXPECT_EQ(bytes_of(actual.rstd), bytes_of(expected.rstd));
}

/// Normalizes a batch after `batches` others in two steps and in one. `parameters`: whether there are weight and bias.
void compare_batch(const Shape& shape, ElementType type, float momentum, int64_t batches, bool parameters) {
  SCOPED_TRACE(testing::Message() << shape.rows << " x " << shape.channels << ", momentum " << momentum);
  const GpuBytes x(as_elements(random_values(shape.rows * shape.channels, 4, false), type));
  const GpuArray<float> weight(random_values(shape.channels, 5, false));
  const GpuArray<float> bias(random_values(shape.channels, 6, false));
  const GpuArray<float> scratch(norm_act_scratch(shape.rows, shape.channels, type));
  const float* weights = parameters ? weight.data() : nullptr;
  const float* biases = parameters ? bias.data() : nullptr;

  const GpuArray<float> mean(shape.channels);
  const GpuArray<float> variance(shape.channels);
  const ForwardCoefficients expected(shape.channels);
  check(channel_moments(x.as<void>(), type, shape.rows, shape.channels, scratch.data(), mean.data(), variance.data(),
                        nullptr));
  check(norm_act_channels({.mean = mean.data(),
                           .variance = variance.data(),
                           .weight = weights,
                           .bias = biases,
                           .eps = kEps,
                           .has_kink = true,
                           .channels = shape.channels},
                          expected.forward.data(), expected.decode.data(), expected.rstd.data(), nullptr));

  const std::vector<float> running_means = random_values(shape.channels, 7, false);
  const std::vector<float> running_variances = random_values(shape.channels, 8, false);
  const GpuArray<float> running_mean(running_means);
  const GpuArray<float> running_var(running_variances);
  const GpuArray<int64_t> count(std::vector<int64_t>{batches});
  const ForwardCoefficients actual(shape.channels);
  BatchStatistics statistics{.weight = weights,
                             .bias = biases,
                             .eps = kEps,
                             .has_kink = true,
                             .running_mean = running_mean.data(),
                             .running_var = running_var.data(),
                             .batches = count.data(),
                             .momentum = momentum};
  const auto run = [&] {
    check(batch_norm_channels(x.as<void>(), type, shape.rows, shape.channels, scratch.data(), statistics,
                              actual.forward.data(), actual.decode.data(), actual.rstd.data(), nullptr));
  };
  run();
  expect_equal(actual, expected);
  EXPECT_EQ(count.read(), std::vector<int64_t>{batches + 1});

  const float share = momentum < 0.0F ? static_cast<float>(1.0 / static_cast<double>(batches + 1)) : momentum;
  const auto rows = static_cast<double>(shape.rows);
  const std::vector<float> means = mean.read();
  const std::vector<float> variances = variance.read();
  std::vector<float> expected_means;
  std::vector<float> expected_variances;
  for (size_t c = 0; c < running_means.size(); ++c) {
    const float unbiased = variances[c] * static_cast<float>(rows / (rows - 1.0));
    expected_means.push_back(running_statistic(running_means[c], means[c], share));
    expected_variances.push_back(running_statistic(running_variances[c], unbiased, share));
  }
  EXPECT_EQ(running_mean.read(), expected_means);
  EXPECT_EQ(running_var.read(), expected_variances);

  statistics.running_mean = nullptr;
  statistics.running_var = nullptr;
  statistics.batches = nullptr;
  statistics.momentum = 0.1F;
  run();
  expect_equal(actual, expected);
  EXPECT_EQ(running_mean.read(), expected_means);
}

using NormActChannelsOf = GpuTestOf<ElementType>;
INSTANTIATE_TEST_SUITE_P(All, NormActChannelsOf, testing::ValuesIn(kElementTypes));

TEST_P(NormActChannelsOf, AreFoundInOneStepAsInTwo) {
  for (const Shape shape : kShapes) {
    compare_batch(shape, GetParam(), 0.1F, 0, true);
    compare_batch(shape, GetParam(), 0.75F, 3, false);
  }
}

TEST_P(NormActChannelsOf, UpdateCumulativeAverages) {
  compare_batch({130, 16}, GetParam(), -1.0F, 0, true);
  compare_batch({517, 2048}, GetParam(), -1.0F, 6, false);
}

TEST_P(NormActChannelsOf, HaveGradientsInOneStepAsInTwo) {
  for (const Shape shape : kShapes) {
    for (const int64_t count : {int64_t{0}, shape.rows}) {
      SCOPED_TRACE(testing::Message() << shape.rows << " x " << shape.channels << ", count " << count);
      std::vector<NormActChannel> of_x;
      std::vector<DecodeMap> inverses;
      const std::vector<float> weights = random_values(shape.channels, 5, false);
      for (const float weight : weights) {
        of_x.push_back(forward_channel(0.1F, 1.5F, weight, 0.3F, false));
        inverses.push_back(decode_map(weight, 0.3F, false));
      }
      const GpuBytes x(as_elements(random_values(shape.rows * shape.channels, 4, false), GetParam()));
      const GpuBytes grad(as_elements(random_values(shape.rows * shape.channels, 6, false), GetParam()));
      const GpuArray<NormActChannel> channels_of_x(of_x);
      const GpuArray<DecodeMap> decode(inverses);
      const GpuArray<float> weight(weights);
      const GpuArray<float> rstd(std::vector<float>(weights.size(), 1.5F));
      const GpuArray<float> scratch(norm_act_scratch(shape.rows, shape.channels, GetParam()));
      const NormActBackward backward{.packed = nullptr,
                                     .layout = {shape.rows, shape.channels},
                                     .grad = grad.as<void>(),
                                     .second_grad = nullptr,
                                     .type = GetParam(),
                                     .activation = {},
                                     .x = x.as<void>(),
                                     .channels_of_x = channels_of_x.data()};

      const GpuArray<float> sums(shape.channels);
      const GpuArray<float> copy_sums(shape.channels);
      check(norm_act_sums(backward, decode.data(), scratch.data(), sums.data(), copy_sums.data(), nullptr));
      const auto gradients_of = [&](auto&& compute) {
        const GpuArray<NormActGradient> gradients(shape.channels);
        const GpuArray<float> grad_weight(shape.channels);
        const GpuArray<float> grad_bias(shape.channels);
        check(compute(gradients.data(), grad_weight.data(), grad_bias.data()));
        return std::vector{bytes_of(gradients), bytes_of(grad_weight), bytes_of(grad_bias)};
      };
      const auto in_two_steps = gradients_of([&](NormActGradient* gradients, float* grad_weight, float* grad_bias) {
        return norm_act_gradients({.sums = sums.data(),
                                   .copy_sums = copy_sums.data(),
                                   .decode = decode.data(),
                                   .weight = weight.data(),
                                   .rstd = rstd.data(),
                                   .count = count,
                                   .channels = shape.channels},
                                  gradients, grad_weight, grad_bias, nullptr);
      });
      const auto in_one_step = gradients_of([&](NormActGradient* gradients, float* grad_weight, float* grad_bias) {
        return norm_act_sums_and_gradients(
            backward, {.decode = decode.data(), .weight = weight.data(), .rstd = rstd.data(), .count = count},
            scratch.data(), gradients, grad_weight, grad_bias, nullptr);
      });
      EXPECT_EQ(in_one_step, in_two_steps);
    }
  }
}

}  // namespace
}  // namespace actnn::cuda
