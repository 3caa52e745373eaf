#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

#include "tests/cpp/cpu/norm_act_run.h"

/// \file
/// What the passes of normalization with activation keep.

namespace actnn::cpu {
namespace {

using enum ActivationFunction;

constexpr std::pair<int64_t, int64_t> kShapes[] = {{1, 1}, {7, 3}, {33, 8}, {130, 16}, {300, 24}, {65, 72}};

class NormActCopiesOf : public testing::TestWithParam<ElementType> {};
INSTANTIATE_TEST_SUITE_P(All, NormActCopiesOf, testing::ValuesIn(kElementTypes));

TEST(NormActCopies, AreWithinHalfAStepAndOnTheirSide) {
  for (const auto& shape : kShapes) {
    for (int bits = 1; bits <= 7; ++bits) {
      for (const Rounding rounding : {Rounding::kDithered, Rounding::kStochastic, Rounding::kNearest}) {
        NormActProblem problem = leaky(shape, ElementType::kFloat32, bits, 0.1F);
        problem.rounding = rounding;
        const Bytes x = problem.elements(3);
        const std::vector<float> values = as_floats(x, problem.type);
        const std::vector<NormActChannel> channels = problem.channels();
        const Result result = run(problem, x);
        const std::vector<float> copies = copies_of(problem, result.packed);
        for (size_t i = 0; i < copies.size(); ++i) {
          const NormActChannel& channel = channels[i % channels.size()];
          const float z = z_of(channel, values[i]);
          const float s = s_of(channel, values[i], z);
          const float step = step_of(problem, result.packed, static_cast<int64_t>(i), z > 0.0F);
          const float most = rounding == Rounding::kStochastic ? 1.0F : 0.5F;
          ASSERT_LE(std::abs(copies[i] - s), (most + 0.004F) * step + 1e-6F * std::abs(s)) << problem.text();
          // Points of the grid are on their side; those from which noise was subtracted are half a step beyond at most.
          if (channel.linear == 0.0F && rounding != Rounding::kDithered) {
            ASSERT_TRUE(z > 0.0F ? copies[i] >= 0.0F : copies[i] <= 0.0F);
          }
        }
      }
    }
  }
}

/// E[copy] = s given the side, so that x-hat and y of a leaky ReLU are unbiased too.
TEST(NormActCopies, AreUnbiased) {
  constexpr int kDraws = 1500;
  for (const int bits : {1, 2, 4}) {
    NormActProblem problem = leaky({64, 14}, ElementType::kFloat32, bits, 0.1F);
    const Bytes x = problem.elements(3);
    const std::vector<float> values = as_floats(x, problem.type);
    const std::vector<NormActChannel> channels = problem.channels();
    const std::vector<DecodeMap> maps = problem.decode();
    const std::vector<float> exact = run(problem, x).y;
    std::vector<double> copy_mean(values.size());
    std::vector<double> y_mean(values.size());
    Result result;
    for (int draw = 0; draw < kDraws; ++draw) {
      problem.random.offset = static_cast<uint64_t>(draw);
      result = run(problem, x);
      const std::vector<float> copies = copies_of(problem, result.packed);
      const std::vector<float> y = output(problem, result.packed, maps);
      for (size_t i = 0; i < values.size(); ++i) {
        copy_mean[i] += copies[i] / double{kDraws};
        y_mean[i] += y[i] / double{kDraws};
      }
    }
    for (size_t i = 0; i < values.size(); ++i) {
      const NormActChannel& channel = channels[i % channels.size()];
      const DecodeMap& map = maps[i % channels.size()];
      const float z = z_of(channel, values[i]);
      const float s = s_of(channel, values[i], z);
      // Positions are rounded to 1/256 of a step; five standard deviations of the mean.
      const double step = step_of(problem, result.packed, static_cast<int64_t>(i), z > 0.0F);
      const double error = step * (5 * std::sqrt(1.0 / 12 / kDraws) + 1.0 / 512) + 1e-6;
      EXPECT_NEAR(copy_mean[i], s, error) << bits << " bits, channel " << i % channels.size();
      EXPECT_NEAR(map.p * copy_mean[i] + map.q, (double{values[i]} - 0.2) * 1.25, error + 1e-6 * std::abs(map.q));
      EXPECT_NEAR(y_mean[i], exact[i], std::abs(map.a) * error + 1e-6);
    }
  }
}

/// x-hat and z of copies with 7 bits are near those of the elements.
TEST(NormActCopies, GiveBackNormalizedElements) {
  const NormActProblem problem = leaky({300, 24}, ElementType::kFloat32, 7, 0.1F);
  const Bytes x = problem.elements(3);
  const std::vector<float> values = as_floats(x, problem.type);
  const std::vector<DecodeMap> maps = problem.decode();
  const Result result = run(problem, x);
  const std::vector<float> copies = copies_of(problem, result.packed);
  const std::vector<float> y = output(problem, result.packed, maps);
  for (size_t i = 0; i < values.size(); ++i) {
    const DecodeMap& map = maps[i % maps.size()];
    EXPECT_NEAR(map.p * copies[i] + map.q, (values[i] - 0.2F) * 1.25F, 0.05F) << "channel " << i % maps.size();
    EXPECT_NEAR(y[i], result.y[i], 0.05F * std::abs(map.a) + 1e-6F);
  }
}

TEST(NormActSums, OfAResidualAreKeptThemselves) {
  NormActProblem problem = leaky({200, 16}, ElementType::kFloat32, 5, 0.0F);
  const Bytes x = problem.elements(3);
  const Bytes residual = problem.elements(5);
  const std::vector<NormActChannel> channels(16, sum_channel(0.75F, -0.125F));
  const std::vector<DecodeMap> maps(16, sum_decode_map());
  std::vector<float> y(static_cast<size_t>(problem.count()));
  Bytes packed = empty_packed(problem.layout, problem.random, problem.rounding);
  norm_act({.x = x.data(),
            .residual = residual.data(),
            .y = y.data(),
            .type = problem.type,
            .layout = problem.layout,
            .channels = channels.data(),
            .activation = problem.activation,
            .keeps_below = false,
            .packed = packed.data(),
            .random = problem.random,
            .rounding = problem.rounding},
           0, problem.pieces());
  const std::vector<float> again = output(problem, packed, maps);
  for (size_t i = 0; i < y.size(); ++i) {
    EXPECT_NEAR(again[i], y[i], 0.51 * 6 / 31);
    EXPECT_TRUE(y[i] > 0.0F || again[i] == 0.0F);
  }
}

/// The step of copies above 0 does not know what is below, if that is not wanted.
TEST(NormActCopies, BelowTheKinkAreLeftOutOnRequest) {
  NormActProblem problem = leaky({64, 8}, ElementType::kFloat32, 3, 0.0F);
  problem.keeps_below = false;
  const Bytes x = problem.elements(3);
  const std::vector<float> values = as_floats(x, problem.type);
  const Result result = run(problem, x);
  const std::vector<float> copies = copies_of(problem, result.packed);
  const std::vector<NormActChannel> channels = problem.channels();
  for (size_t i = 0; i < copies.size(); ++i) {
    const NormActChannel& channel = channels[i % 8];
    if (channel.linear == 0.0F && z_of(channel, values[i]) <= 0.0F) {
      EXPECT_EQ(copies[i], 0.0F);
    }
  }
}

TEST_P(NormActCopiesOf, WhatIsNotFiniteStaysAlone) {
  for (const int bits : {1, 2, 5}) {
    for (const int masks : {0, 1}) {
      NormActProblem problem = leaky({130, 17}, GetParam(), bits, 0.25F);
      problem.layout.masks = masks;
      Bytes x = problem.elements(3);
      std::vector<float> values = as_floats(x, problem.type);
      constexpr int64_t kLost = 70 * 17 + 4;  // in the only block's channel 4, which is split if there is a mask
      values[kLost] = float_of(kInfinityFloat32);
      x = as_bytes(values, problem.type);
      const Result result = run(problem, x);
      const std::vector<float> copies = copies_of(problem, result.packed);
      for (int64_t i = 0; i < problem.count(); ++i) {
        const bool in_group = i % 17 == 4 && i / 17 < 128;
        const bool is_lost = i == kLost || (bits == 1 && in_group);  // 1 bit has no code left for it
        ASSERT_EQ(is_nan(copies[static_cast<size_t>(i)]), is_lost) << i << ", " << problem.text();
      }
    }
  }
}

TEST(NormActCopies, OfANanThatIsNotKeptAreZero) {
  NormActProblem problem = leaky({64, 8}, ElementType::kFloat32, 1, 0.0F);
  problem.keeps_below = false;
  std::vector<float> values = as_floats(problem.elements(3), problem.type);
  values[8] = float_of(kNanFloat32);  // channel 0
  const Result result = run(problem, as_bytes(values, problem.type));
  EXPECT_TRUE(is_nan(result.y[8]));
  EXPECT_EQ(bits_of(result.y[8]), kNanFloat32);
  const std::vector<float> copies = copies_of(problem, result.packed);
  for (size_t i = 0; i < copies.size(); i += 8) {
    EXPECT_FALSE(is_nan(copies[i]));
  }
}

}  // namespace
}  // namespace actnn::cpu
