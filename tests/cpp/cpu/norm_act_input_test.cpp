#include <gtest/gtest.h>

#include <vector>

#include "actnn/cpu/norm_act.h"
#include "tests/cpp/cpu/test_data.h"

/// \file
/// A normalization's backward from its input instead of the copies, and the gradient of a sum.

namespace actnn::cpu {
namespace {

using Layout = SplitLayout<int64_t>;

constexpr float kSlope = 0.25F;
constexpr int kBits = 3;

/// Channels of both kinds, in forward and in backward.
struct Channels {
  std::vector<NormActChannel> forward;
  std::vector<DecodeMap> decode;
  std::vector<NormActGradient> gradients;

  explicit Channels(int64_t count) {
    for (int64_t c = 0; c < count; ++c) {
      const float weight = c % 3 == 0 ? 0.0F : c % 3 == 1 ? 0.8F : -1.5F;
      forward.push_back(forward_channel(0.2F, 1.25F, weight, 0.3F, true));
      decode.push_back(decode_map(weight, 0.3F, true));
      gradients.push_back({0.5F, 0.25F, -0.125F, decode.back().linear});
    }
  }

  /// s of the input, of every channel.
  std::vector<NormActChannel> of_x() const {
    std::vector<NormActChannel> result = forward;
    for (NormActChannel& channel : result) {
      channel.s_scale = 1.25F;
      channel.s_shift = -0.25F;
    }
    return result;
  }
};

/// A matrix, its forward, and what its backward reads.
struct Case {
  Layout layout;
  ElementType type;
  bool has_second;
  Channels channels{layout.channels};
  std::vector<NormActChannel> channels_of_x = channels.of_x();
  std::vector<uint8_t> x = as_elements(random_values(count(), 3, false), type);
  std::vector<uint8_t> grad = as_elements(random_values(count(), 8, false), type);
  std::vector<uint8_t> second = as_elements(random_values(count(), 9, false), type);
  std::vector<uint8_t> y = std::vector<uint8_t>(x.size());
  std::vector<uint8_t> packed = std::vector<uint8_t>(static_cast<size_t>(layout.bytes(kBits)));

  int64_t count() const { return layout.rows * layout.channels; }

  void forward() {
    norm_act({.x = x.data(),
              .residual = nullptr,
              .y = y.data(),
              .type = type,
              .layout = layout,
              .channels = channels.forward.data(),
              .slope = kSlope,
              .bits = kBits,
              .keeps_below = true,
              .packed = packed.data(),
              .random = {7, 0},
              .stochastic = true},
             0, layout.groups());
  }

  NormActBackward backward() const {
    return {.packed = packed.data(),
            .bits = kBits,
            .grad = grad.data(),
            .second_grad = has_second ? second.data() : nullptr,
            .type = type,
            .layout = layout,
            .slope = kSlope,
            .x = x.data(),
            .channels_of_x = channels_of_x.data()};
  }
};

float element(const std::vector<uint8_t>& bytes, ElementType type, int64_t index) {
  return with_element_type(type, [&]<class Element>(Element /*tag*/) {
    Element value;
    std::memcpy(&value, bytes.data() + index * static_cast<int64_t>(sizeof value), sizeof value);
    return to_float(value);
  });
}

float rounded(float value, ElementType type) { return element(as_elements({value}, type), type, 0); }

/// By the formulas, one element.
struct Expected {
  float dz;
  float s;

  Expected(const Case& run, int64_t i, bool has_sides = true) {
    const NormActChannel& map = run.channels.forward[i % run.layout.channels];
    const float x = element(run.x, run.type, i);
    const float scaled = map.z_scale * x;
    const bool side = !has_sides || scaled + map.z_shift > 0.0F;
    const float gradient = element(run.grad, run.type, i);
    const float sum = run.has_second ? gradient + element(run.second, run.type, i) : gradient;
    dz = side ? sum : kSlope * sum;
    s = 1.25F * x - 0.25F;
  }
  float grad_input() const { return 0.5F * dz + 0.25F * s - 0.125F; }
};

constexpr Layout kLayouts[] = {{7, 3}, {33, 8}, {40, 24}, {13, 64}, {5, 100}, {6, 256}};

class NormActInput : public testing::TestWithParam<std::tuple<ElementType, bool>> {};
INSTANTIATE_TEST_SUITE_P(All, NormActInput, testing::Combine(testing::ValuesIn(kElementTypes), testing::Bool()));

TEST_P(NormActInput, SumsAreThoseOfTheInput) {
  const auto [type, has_second] = GetParam();
  for (const Layout& layout : kLayouts) {
    Case run{.layout = layout, .type = type, .has_second = has_second};
    run.forward();
    std::vector<double> sums(static_cast<size_t>(2 * layout.channels));
    norm_act_sums(run.backward(), run.channels.decode.data(), 0, layout.row_blocks(), sums.data(),
                  sums.data() + layout.channels);
    std::vector<double> expected(sums.size());
    for (int64_t i = 0; i < run.count(); ++i) {
      const Expected of(run, i);
      expected[i % layout.channels] += of.dz;
      expected[layout.channels + i % layout.channels] += double{of.dz} * of.s;
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      EXPECT_NEAR(sums[i], expected[i], 1e-12 * static_cast<double>(layout.rows));
    }
  }
}

TEST_P(NormActInput, GradientsAreThoseOfTheInput) {
  const auto [type, has_second] = GetParam();
  for (const Layout& layout : kLayouts) {
    Case run{.layout = layout, .type = type, .has_second = has_second};
    run.forward();
    std::vector<uint8_t> grad_input(run.x.size());
    std::vector<uint8_t> grad_sum(run.x.size());
    norm_act_input_gradient(run.backward(), run.channels.gradients.data(), grad_input.data(), grad_sum.data(), 0,
                            layout.groups());
    for (int64_t i = 0; i < run.count(); ++i) {
      const Expected expected(run, i);
      EXPECT_EQ(element(grad_input, type, i), rounded(expected.grad_input(), type));
      EXPECT_EQ(element(grad_sum, type, i), rounded(expected.dz, type));
    }
  }
}

TEST_P(NormActInput, GradientsMayTakeThePlacesOfWhatIsRead) {
  const auto [type, has_second] = GetParam();
  for (const Layout& layout : kLayouts) {
    Case run{.layout = layout, .type = type, .has_second = has_second};
    run.forward();
    const Case before = run;
    norm_act_input_gradient(run.backward(), run.channels.gradients.data(), run.x.data(), run.grad.data(), 0,
                            layout.groups());
    for (int64_t i = 0; i < run.count(); ++i) {
      const Expected expected(before, i);
      EXPECT_EQ(element(run.x, type, i), rounded(expected.grad_input(), type));
      EXPECT_EQ(element(run.grad, type, i), rounded(expected.dz, type));
    }
  }
}

TEST_P(NormActInput, NothingIsPackedWithoutAnActivation) {
  const auto [type, has_second] = GetParam();
  for (const Layout& layout : kLayouts) {
    const Case run{.layout = layout, .type = type, .has_second = has_second};
    NormActBackward backward = run.backward();
    backward.packed = nullptr;
    backward.slope = 1.0F;
    std::vector<uint8_t> grad_input(run.x.size());
    norm_act_input_gradient(backward, run.channels.gradients.data(), grad_input.data(), nullptr, 0, layout.groups());
    for (int64_t i = 0; i < run.count(); ++i) {
      EXPECT_EQ(element(grad_input, type, i), rounded(Expected(run, i, false).grad_input(), type));
    }
  }
}

}  // namespace
}  // namespace actnn::cpu
