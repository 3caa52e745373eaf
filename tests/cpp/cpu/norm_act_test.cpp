#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

#include "tests/cpp/cpu/norm_act_run.h"

/// \file
/// What the passes of normalization with activation compute.

namespace actnn::cpu {
namespace {

using enum ActivationFunction;

constexpr std::pair<int64_t, int64_t> kShapes[] = {{1, 1}, {7, 3}, {33, 8}, {130, 16}, {300, 24}, {65, 72}};

class NormAct : public testing::TestWithParam<ElementType> {};
INSTANTIATE_TEST_SUITE_P(All, NormAct, testing::ValuesIn(kElementTypes));

TEST_P(NormAct, OutputIsThatOfTheActivation) {
  for (const auto& shape : kShapes) {
    for (const FusedActivation& activation :
         {FusedActivation{kIdentity}, {kLeakyReLU, 0.0F}, {kLeakyReLU, 0.1F}, {kReLU6}, {kSiLU}, {kHardswish}}) {
      NormActProblem problem = leaky(shape, GetParam(), 3, 0.0F);
      problem.activation = activation;
      problem.layout.masks = mask_count(activation.function);
      const Bytes x = problem.elements(3);
      const std::vector<float> values = as_floats(x, problem.type);
      const std::vector<NormActChannel> channels = problem.channels();
      const std::vector<float> y = run(problem, x).y;
      for (size_t i = 0; i < y.size(); ++i) {
        const float z = z_of(channels[i % channels.size()], values[i]);
        ASSERT_EQ(y[i], rounded(activated(activation, z), problem.type)) << problem.text();
      }
    }
  }
}

/// Where the slope is 0, y of copies is 0 exactly where y was; the mask is exact for linear channels too.
TEST_P(NormAct, SidesAreExact) {
  for (const auto& shape : kShapes) {
    const NormActProblem problem = leaky(shape, GetParam(), 1, 0.0F);
    const Bytes x = problem.elements(4);
    const std::vector<float> values = as_floats(x, problem.type);
    const std::vector<NormActChannel> channels = problem.channels();
    const Bytes ones = as_bytes(std::vector<float>(values.size(), 1.0F), problem.type);
    const Result result = run(problem, x);
    std::vector<NormActGradient> identity(channels.size(), {1.0F, 0.0F, 0.0F, 0.0F, 0.0F, 0.0F});
    Bytes grad_input(x.size());
    Bytes dz(x.size());
    norm_act_input_gradient(backward_of(problem, result.packed, &ones), identity.data(), grad_input.data(), dz.data(),
                            0, problem.pieces());
    const std::vector<float> gradients = as_floats(dz, problem.type);
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(gradients[i], z_of(channels[i % channels.size()], values[i]) > 0.0F ? 1.0F : 0.0F) << problem.text();
    }
  }
}

TEST_P(NormAct, Relu6KnowsItsSlopeExactly) {
  NormActProblem problem = leaky({130, 16}, GetParam(), 5, 0.0F);
  problem.activation = {kReLU6};
  problem.layout.masks = 2;
  problem.scale = 5.0F;
  const Bytes x = problem.elements(4);
  const std::vector<float> values = as_floats(x, problem.type);
  const std::vector<NormActChannel> channels = problem.channels();
  const Result result = run(problem, x);
  const std::vector<float> y = output(problem, result.packed, problem.decode());
  for (size_t i = 0; i < values.size(); ++i) {
    const float z = z_of(channels[i % channels.size()], values[i]);
    if (z <= 0.0F) {
      EXPECT_EQ(y[i], 0.0F);
    } else if (z >= 6.0F) {
      EXPECT_EQ(y[i], 6.0F);
    }
  }
}

TEST_P(NormAct, ResidualsAreAddedBeforeTheActivation) {
  for (const bool keeps_below : {false, true}) {
    NormActProblem problem = leaky({70, 40}, GetParam(), 4, keeps_below ? 0.2F : 0.0F);
    problem.keeps_below = keeps_below;
    const Bytes x = problem.elements(3);
    const Bytes residual = problem.elements(5);
    const std::vector<float> values = as_floats(x, problem.type);
    const std::vector<float> added = as_floats(residual, problem.type);
    const std::vector<NormActChannel> channels = problem.channels();
    const std::vector<float> y = run(problem, x, residual).y;
    for (size_t i = 0; i < y.size(); ++i) {
      const float z = z_of(channels[i % channels.size()], values[i]) + added[i];
      EXPECT_EQ(y[i], rounded(activated(problem.activation, z), problem.type));
    }
  }
}

TEST_P(NormAct, GradientsAreThoseOfTheCopies) {
  for (const auto& shape : kShapes) {
    for (const FusedActivation& activation :
         {FusedActivation{kIdentity}, {kLeakyReLU, 0.25F}, {kReLU6}, {kSiLU}, {kHardswish}}) {
      NormActProblem problem = leaky(shape, GetParam(), 4, 0.0F);
      problem.activation = activation;
      problem.layout.masks = mask_count(activation.function);
      const Bytes x = problem.elements(3);
      const Bytes grad = problem.elements(8);
      const std::vector<float> values = as_floats(x, problem.type);
      const std::vector<float> gradients = as_floats(grad, problem.type);
      const std::vector<NormActChannel> channels = problem.channels();
      const std::vector<NormActGradient> maps = problem.gradients();
      const Result result = run(problem, x);
      // They are rounded to the elements' type here, and were not there.
      const std::vector<float> copies = copies_of(problem, result.packed);
      const double precision = problem.type == ElementType::kFloat32   ? 1e-5
                               : problem.type == ElementType::kFloat16 ? 2e-3
                                                                       : 2e-2;
      Bytes grad_input(x.size());
      norm_act_input_gradient(backward_of(problem, result.packed, &grad), maps.data(), grad_input.data(), nullptr, 0,
                              problem.pieces());
      const std::vector<float> actual = as_floats(grad_input, problem.type);
      for (size_t i = 0; i < actual.size(); ++i) {
        const float z = z_of(channels[i % channels.size()], values[i]);
        const NormActGradient& map = maps[i % maps.size()];
        const float scaled = map.a * copies[i];
        const bool between = jumps_of(activation.function).are_around(z);
        const float dz = activation.function == kIdentity    ? gradients[i]
                         : activation.function == kLeakyReLU ? leaky_relu_gradient(gradients[i], z > 0.0F, 0.25F)
                         : activation.function == kReLU6     ? leaky_relu_gradient(gradients[i], between, 0.0F)
                         : activation.function == kSiLU
                             ? activate<kSiLU>(scaled + map.b).derivative * gradients[i]
                             : activate_copy<kHardswish>(scaled + map.b, z > 0.0F, between).derivative * gradients[i];
        const float expected = map.scale * dz + map.of_copy * copies[i] + map.shift;
        const double size = 1 + std::abs(map.scale * gradients[i]) + std::abs(map.of_copy * copies[i]);
        ASSERT_NEAR(actual[i], expected, precision * size) << problem.text();
      }
    }
  }
}

/// A whole backward pass of batch norm with ReLU from copies of 7 bits.
TEST(NormActGradients, WithSevenBitsAreNearTheExactOnes) {
  constexpr int64_t kRows = 512;
  constexpr int64_t kChannels = 4;
  NormActProblem problem = leaky({kRows, kChannels}, ElementType::kFloat32, 7, 0.0F);
  const Bytes x = problem.elements(3);
  const Bytes grad = problem.elements(8);
  const std::vector<float> values = as_floats(x, problem.type);
  const std::vector<float> gradients = as_floats(grad, problem.type);
  constexpr float kWeights[] = {1.0F, -0.7F, 0.4F, 2.0F};
  constexpr float kBiases[] = {0.1F, 0.2F, -0.3F, 0.0F};
  std::vector<double> mean(kChannels);
  std::vector<double> squares(kChannels);
  part_moments(x.data(), problem.type, kRows, kChannels, 0, mean.data(), squares.data());
  std::vector<NormActChannel> channels;
  std::vector<DecodeMap> maps;
  std::vector<float> rstd;
  for (size_t c = 0; c < kChannels; ++c) {
    rstd.push_back(static_cast<float>(1 / std::sqrt(squares[c] / kRows)));
    channels.push_back(forward_channel(static_cast<float>(mean[c]), rstd[c], kWeights[c], kBiases[c], true));
    maps.push_back(decode_map(kWeights[c], kBiases[c], true));
  }
  std::vector<float> y(values.size());
  Bytes packed = empty_packed(problem.layout, problem.random, problem.rounding);
  norm_act({.x = x.data(),
            .residual = nullptr,
            .y = y.data(),
            .type = problem.type,
            .layout = problem.layout,
            .channels = channels.data(),
            .activation = problem.activation,
            .keeps_below = true,
            .packed = packed.data(),
            .random = problem.random,
            .rounding = problem.rounding},
           0, problem.pieces());
  const NormActBackward backward = backward_of(problem, packed, &grad);
  std::vector<double> sums(kChannels);
  std::vector<double> copy_sums(kChannels);
  norm_act_sums(backward, maps.data(), 0, problem.layout.blocks(), sums.data(), copy_sums.data());
  std::vector<NormActGradient> gradient_maps;
  for (size_t c = 0; c < kChannels; ++c) {
    gradient_maps.push_back(gradient_channel(maps[c], kWeights[c], rstd[c], static_cast<float>(sums[c] / kRows),
                                             static_cast<float>(copy_sums[c] / kRows)));
  }
  std::vector<float> grad_input(values.size());
  norm_act_input_gradient(backward, gradient_maps.data(), grad_input.data(), nullptr, 0, problem.pieces());
  for (size_t c = 0; c < kChannels; ++c) {
    double mean_dz = 0;
    double mean_dz_normalized = 0;
    for (size_t i = c; i < values.size(); i += kChannels) {
      const double normalized = (values[i] - mean[c]) * rstd[c];
      const double dz = kWeights[c] * normalized + kBiases[c] > 0 ? gradients[i] : 0.0;
      mean_dz += dz / kRows;
      mean_dz_normalized += dz * normalized / kRows;
    }
    EXPECT_NEAR(sums[c] / kRows, mean_dz, 1e-6);
    EXPECT_NEAR(weight_gradient(maps[c], static_cast<float>(sums[c]), static_cast<float>(copy_sums[c])) / kRows,
                mean_dz_normalized, 2e-3);
    for (size_t i = c; i < values.size(); i += kChannels) {
      const double normalized = (values[i] - mean[c]) * rstd[c];
      const double dz = kWeights[c] * normalized + kBiases[c] > 0 ? gradients[i] : 0.0;
      const double expected = kWeights[c] * rstd[c] * (dz - mean_dz - normalized * mean_dz_normalized);
      EXPECT_NEAR(grad_input[i], expected, 0.03) << "channel " << c;
    }
  }
}

TEST(NormActGradients, SumsAreThoseOfTheirParts) {
  const NormActProblem problem = leaky({700, 20}, ElementType::kFloat32, 3, 0.25F);
  const Bytes x = problem.elements(3);
  const Bytes grad = problem.elements(8);
  const Result result = run(problem, x);
  const NormActBackward backward = backward_of(problem, result.packed, &grad);
  const std::vector<DecodeMap> maps = problem.decode();
  const auto sums_of = [&](int64_t first, int64_t last) {
    std::vector<double> sums(40);
    norm_act_sums(backward, maps.data(), first, last, sums.data(), sums.data() + 20);
    return sums;
  };
  const std::vector<double> all = sums_of(0, 6);
  std::vector<double> parts(40);
  for (int64_t block = 0; block < 6; ++block) {
    const std::vector<double> part = sums_of(block, block + 1);
    for (size_t i = 0; i < parts.size(); ++i) {
      parts[i] += part[i];
    }
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    EXPECT_NEAR(parts[i], all[i], 1e-9 * (1 + std::abs(all[i])));
  }
}

}  // namespace
}  // namespace actnn::cpu
