#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

#include "tests/cpp/cpu/norm_act_problem.h"

/// \file
/// A normalization's backward from its input, or from copies of the normalized input, instead of the activation's.

namespace actnn::cpu {
namespace {

constexpr float kSlope = 0.25F;
constexpr float kScale = 1.25F;  // of s = scale x + shift
constexpr float kShift = -0.25F;

/// A matrix, of which forward keeps the sides of the kink alone, and what its backward reads.
struct Case {
  NormActProblem problem;
  bool has_second;
  std::vector<NormActChannel> channels = problem.channels();
  std::vector<NormActChannel> channels_of_x{channels.size(), {0.0F, 0.0F, kScale, kShift, 1.0F}};
  std::vector<DecodeMap> decode = problem.decode();
  std::vector<NormActGradient> gradients{channels.size(), {0.5F, 0.25F, -0.125F, 0.0F, 1.0F, 0.0F}};
  Bytes x = problem.elements(3);
  Bytes grad = problem.elements(8);
  Bytes second = problem.elements(9);
  Bytes packed = empty_packed(problem.layout, problem.random, problem.rounding);

  Case(std::pair<int64_t, int64_t> shape, ElementType type, bool second_grad)
      : problem{.layout = {.rows = shape.first, .channels = shape.second, .group_rows = 64, .bits = 0, .masks = 1},
                .type = type,
                .activation = {ActivationFunction::kLeakyReLU, kSlope}},
        has_second(second_grad) {
    norm_act({.x = x.data(),
              .residual = nullptr,
              .y = nullptr,
              .type = type,
              .layout = problem.layout,
              .channels = channels.data(),
              .activation = problem.activation,
              .keeps_below = true,
              .packed = packed.data(),
              .random = problem.random,
              .rounding = problem.rounding},
             0, problem.pieces());
  }

  NormActBackward backward() const {
    return {.packed = packed.data(),
            .layout = problem.layout,
            .grad = grad.data(),
            .second_grad = has_second ? second.data() : nullptr,
            .type = problem.type,
            .activation = problem.activation,
            .x = x.data(),
            .channels_of_x = channels_of_x.data()};
  }
};

/// By the formulas, element by element.
struct Expected {
  std::vector<float> dz;
  std::vector<float> s;

  explicit Expected(const Case& run, bool has_sides = true) {
    const std::vector<float> x = as_floats(run.x, run.problem.type);
    const std::vector<float> grad = as_floats(run.grad, run.problem.type);
    const std::vector<float> second = as_floats(run.second, run.problem.type);
    for (size_t i = 0; i < x.size(); ++i) {
      const NormActChannel& map = run.channels[i % run.channels.size()];
      const float scaled = map.z_scale * x[i];
      const bool side = !has_sides || scaled + map.z_shift > 0.0F;
      const float sum = run.has_second ? grad[i] + second[i] : grad[i];
      dz.push_back(side ? sum : kSlope * sum);
      s.push_back(kScale * x[i] + kShift);
    }
  }
  float grad_input(size_t i) const { return 0.5F * dz[i] + 0.25F * s[i] - 0.125F; }
};

void expect_gradients(const Case& run, const Expected& expected, const Bytes& grad_input, const Bytes& grad_sum) {
  const std::vector<float> inputs = as_floats(grad_input, run.problem.type);
  const std::vector<float> sums = as_floats(grad_sum, run.problem.type);
  for (size_t i = 0; i < inputs.size(); ++i) {
    ASSERT_EQ(inputs[i], rounded(expected.grad_input(i), run.problem.type)) << run.problem.text();
    ASSERT_EQ(sums[i], rounded(expected.dz[i], run.problem.type)) << run.problem.text();
  }
}

constexpr std::pair<int64_t, int64_t> kShapes[] = {{7, 3}, {33, 8}, {140, 24}, {70, 64}, {5, 100}, {6, 256}};

class NormActInput : public testing::TestWithParam<std::tuple<ElementType, bool>> {};
INSTANTIATE_TEST_SUITE_P(All, NormActInput, testing::Combine(testing::ValuesIn(kElementTypes), testing::Bool()));

TEST_P(NormActInput, SumsAreThoseOfTheInput) {
  const auto [type, has_second] = GetParam();
  for (const auto& shape : kShapes) {
    const Case run(shape, type, has_second);
    const Expected expected(run);
    const auto channels = static_cast<size_t>(shape.second);
    std::vector<double> sums(2 * channels);
    norm_act_sums(run.backward(), run.decode.data(), 0, run.problem.layout.blocks(), sums.data(),
                  sums.data() + channels);
    std::vector<double> exact(sums.size());
    for (size_t i = 0; i < expected.dz.size(); ++i) {
      exact[i % channels] += expected.dz[i];
      exact[channels + i % channels] += double{expected.dz[i]} * expected.s[i];
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      EXPECT_NEAR(sums[i], exact[i], 1e-12 * static_cast<double>(shape.first));
    }
  }
}

TEST_P(NormActInput, GradientsAreThoseOfTheInput) {
  const auto [type, has_second] = GetParam();
  for (const auto& shape : kShapes) {
    const Case run(shape, type, has_second);
    Bytes grad_input(run.x.size());
    Bytes grad_sum(run.x.size());
    norm_act_input_gradient(run.backward(), run.gradients.data(), grad_input.data(), grad_sum.data(), 0,
                            run.problem.pieces());
    expect_gradients(run, Expected(run), grad_input, grad_sum);
  }
}

TEST_P(NormActInput, GradientsMayTakeThePlacesOfWhatIsRead) {
  const auto [type, has_second] = GetParam();
  for (const auto& shape : kShapes) {
    Case run(shape, type, has_second);
    const Expected expected(run);
    norm_act_input_gradient(run.backward(), run.gradients.data(), run.x.data(), run.grad.data(), 0,
                            run.problem.pieces());
    expect_gradients(run, expected, run.x, run.grad);
  }
}

TEST_P(NormActInput, NothingIsPackedWithoutAnActivation) {
  const auto [type, has_second] = GetParam();
  for (const auto& shape : kShapes) {
    Case run(shape, type, has_second);
    run.problem.layout.masks = 0;
    run.problem.activation = {};
    NormActBackward backward = run.backward();
    backward.packed = nullptr;
    Bytes grad_input(run.x.size());
    Bytes grad_sum(run.x.size());
    norm_act_input_gradient(backward, run.gradients.data(), grad_input.data(), grad_sum.data(), 0,
                            run.problem.pieces());
    expect_gradients(run, Expected(run, false), grad_input, grad_sum);
  }
}

/// Copies of x-hat in a packed tensor of their own: with 8 bits they are near, and sides are still exact.
TEST_P(NormActInput, NormalizedCopiesTakeThePlaceOfTheInput) {
  const auto [type, has_second] = GetParam();
  constexpr int kBits = 8;
  for (const auto& shape : kShapes) {
    const Case run(shape, type, has_second);
    NormActBackward backward = run.backward();
    backward.x = nullptr;
    backward.channels_of_x = nullptr;
    backward.normalized_bits = kBits;
    const ColumnLayout<int64_t> layout = backward.normalized_layout();
    const RandomState random{5, 6};
    Bytes normalized = empty_packed(layout, random, Rounding::kDithered);
    norm_act({.x = run.x.data(),
              .residual = nullptr,
              .y = nullptr,
              .type = type,
              .layout = layout,
              .channels = run.channels_of_x.data(),
              .activation = {},
              .keeps_below = true,
              .packed = normalized.data(),
              .random = random,
              .rounding = Rounding::kDithered},
             0, column_pieces(layout));
    backward.normalized = normalized.data();
    Bytes grad_input(run.x.size());
    Bytes grad_sum(run.x.size());
    norm_act_input_gradient(backward, run.gradients.data(), grad_input.data(), grad_sum.data(), 0,
                            run.problem.pieces());
    const Expected expected(run);
    const std::vector<float> inputs = as_floats(grad_input, type);
    const std::vector<float> sums = as_floats(grad_sum, type);
    for (size_t i = 0; i < inputs.size(); ++i) {
      EXPECT_EQ(sums[i], rounded(expected.dz[i], type));
      EXPECT_NEAR(inputs[i], expected.grad_input(i), 0.25 * 12.0 / 255 + (type == ElementType::kFloat32 ? 0 : 0.02));
    }
  }
}

}  // namespace
}  // namespace actnn::cpu
