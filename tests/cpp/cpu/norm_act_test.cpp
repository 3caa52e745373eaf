#include "actnn/cpu/norm_act.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/cpp/cpu/test_data.h"

namespace actnn::cpu {
namespace {

using Layout = SplitLayout<int64_t>;

struct Shape {
  int64_t rows;
  int64_t channels;
};
constexpr Shape kShapes[] = {{1, 1},   {7, 3},    {33, 8},  {130, 16}, {65, 24},
                             {19, 40}, {130, 64}, {9, 100}, {6, 256},  {5, 320}};

/// Channels of every kind: weights of both signs, tiny ones, 0; kinks near, far, and on either side.
struct Channels {
  std::vector<NormActChannel> forward;
  std::vector<DecodeMap> decode;

  Channels(int64_t count, bool has_kink) {
    constexpr float kWeights[] = {1.0F, -0.7F, 0.0F, 1e-3F, 2.5F, -1e-6F, 0.3F};
    constexpr float kBiases[] = {0.1F, -0.4F, 0.5F, 0.7F, 0.0F, -0.2F, 2.0F, -0.5F, 1.5F};
    for (int64_t c = 0; c < count; ++c) {
      const float weight = kWeights[c % 7];
      const float bias = kBiases[c % 9];
      forward.push_back(forward_channel(0.2F, 1.25F, weight, bias, has_kink));
      decode.push_back(decode_map(weight, bias, has_kink));
    }
  }

  /// The channels' kinds, with s as it is.
  std::vector<DecodeMap> identity() const {
    std::vector<DecodeMap> result = decode;
    for (DecodeMap& channel : result) {
      channel.a = 1.0F;
      channel.b = 0.0F;
    }
    return result;
  }
};

struct Problem {
  Layout layout;
  ElementType type;
  int bits;
  float slope;
  bool stochastic = true;
  bool keeps_below = true;
  std::vector<float> values{};
  std::vector<float> residual{};

  std::vector<float> x() const { return rounded(values); }
  std::vector<float> rounded(const std::vector<float>& numbers) const {
    return as_floats(as_elements(numbers, type), type);
  }
  static std::vector<float> as_floats(const std::vector<uint8_t>& bytes, ElementType type) {
    std::vector<float> result;
    with_element_type(type, [&]<class Element>(Element /*tag*/) {
      for (size_t i = 0; i < bytes.size() / sizeof(Element); ++i) {
        Element element;
        std::memcpy(&element, bytes.data() + i * sizeof element, sizeof element);
        result.push_back(to_float(element));
      }
    });
    return result;
  }
};

struct Result {
  std::vector<float> y;
  std::vector<uint8_t> packed;
};

Result run(const Problem& problem, const Channels& channels, uint64_t offset = 0) {
  const std::vector<uint8_t> x = as_elements(problem.values, problem.type);
  const std::vector<uint8_t> residual = as_elements(problem.residual, problem.type);
  std::vector<uint8_t> y(x.size());
  Result result;
  result.packed.resize(static_cast<size_t>(problem.layout.bytes(problem.bits)));
  norm_act({.x = x.data(),
            .residual = problem.residual.empty() ? nullptr : residual.data(),
            .y = y.data(),
            .type = problem.type,
            .layout = problem.layout,
            .channels = channels.forward.data(),
            .slope = problem.slope,
            .bits = problem.bits,
            .keeps_below = problem.keeps_below,
            .packed = result.packed.data(),
            .random = {7, offset},
            .stochastic = problem.stochastic},
           0, problem.layout.groups());
  result.y = Problem::as_floats(y, problem.type);
  return result;
}

/// Copies are read in float32, whatever the type of the elements: the steps are those of the type.
std::vector<float> output(const Problem& problem, const std::vector<uint8_t>& packed,
                          const std::vector<DecodeMap>& channels, float slope) {
  std::vector<uint8_t> y(problem.values.size() * static_cast<size_t>(element_size(problem.type)));
  norm_act_output({.packed = packed.data(),
                   .bits = problem.bits,
                   .grad = nullptr,
                   .second_grad = nullptr,
                   .type = problem.type,
                   .layout = problem.layout,
                   .slope = slope},
                  channels.data(), y.data(), 0, problem.layout.groups());
  return Problem::as_floats(y, problem.type);
}

Problem make_problem(Shape shape, ElementType type, int bits, float slope) {
  Problem problem{.layout = {shape.rows, shape.channels}, .type = type, .bits = bits, .slope = slope};
  problem.values = random_values(shape.rows * shape.channels, 3, false);
  return problem;
}

float s_of(const NormActChannel& channel, float x, float z) {
  const float scaled = channel.s_scale * (channel.linear != 0.0F ? x : z);
  return scaled + channel.s_shift;
}

float z_of(const NormActChannel& channel, float x) {
  const float scaled = channel.z_scale * x;
  return scaled + channel.z_shift;
}

class NormAct : public testing::TestWithParam<ElementType> {};
INSTANTIATE_TEST_SUITE_P(All, NormAct, testing::ValuesIn(kElementTypes));

TEST_P(NormAct, OutputIsExactAndCopiesAreNear) {
  for (const Shape shape : kShapes) {
    const Channels channels(shape.channels, true);
    for (int bits = 2; bits <= 8; ++bits) {
      for (const float slope : {0.0F, 0.1F}) {
        const Problem problem = make_problem(shape, GetParam(), bits, slope);
        const Result result = run(problem, channels);
        const std::vector<float> x = problem.x();
        const std::vector<float> copies = output(problem, result.packed, channels.identity(), 1.0F);
        const auto levels = static_cast<float>(highest_split_value(bits));
        for (size_t i = 0; i < x.size(); ++i) {
          const NormActChannel& channel = channels.forward[i % static_cast<size_t>(shape.channels)];
          const float z = z_of(channel, x[i]);
          const float expected = z > 0 ? z : slope * z;
          EXPECT_EQ(result.y[i], problem.rounded({expected})[0]);
          // |s| is at most 12 or so here; a step is the largest of a group over the levels, a linear one twice that.
          const float s = s_of(channel, x[i], z);
          EXPECT_NEAR(copies[i], s, 2 * 12 / levels * 1.02F) << bits;
          if (channel.linear == 0.0F) {
            EXPECT_TRUE(z > 0 ? copies[i] >= 0 : copies[i] <= 0);
          }
        }
      }
    }
  }
}

TEST(NormActCopies, AreTheNearestWithoutNoise) {
  for (const Shape shape : kShapes) {
    const Channels channels(shape.channels, true);
    Problem problem = make_problem(shape, ElementType::kFloat32, 8, 0.0F);
    problem.stochastic = false;
    const Result result = run(problem, channels);
    const std::vector<float> copies = output(problem, result.packed, channels.identity(), 1.0F);
    for (size_t i = 0; i < copies.size(); ++i) {
      const NormActChannel& channel = channels.forward[i % static_cast<size_t>(shape.channels)];
      EXPECT_NEAR(copies[i], s_of(channel, problem.values[i], z_of(channel, problem.values[i])), 12.0 / 127 * 1.02);
    }
  }
}

/// E[copy] = s, E[x-hat] and E[y] are exact, for every kind of channel.
TEST(NormActCopies, AreUnbiased) {
  constexpr int kDraws = 2000;
  for (const Shape shape : {Shape{8, 64}, Shape{40, 14}}) {
    const Channels channels(shape.channels, true);
    for (const int bits : {2, 3, 5}) {
      const Problem problem = make_problem(shape, ElementType::kFloat32, bits, 0.1F);
      const std::vector<float> exact = run(problem, channels).y;
      std::vector<double> copy_sum(problem.values.size());
      std::vector<double> copy_squares(problem.values.size());
      std::vector<double> y_sum(problem.values.size());
      for (int draw = 0; draw < kDraws; ++draw) {
        const Result result = run(problem, channels, static_cast<uint64_t>(draw));
        const std::vector<float> copies = output(problem, result.packed, channels.identity(), 1.0F);
        const std::vector<float> y = output(problem, result.packed, channels.decode, problem.slope);
        for (size_t i = 0; i < copies.size(); ++i) {
          copy_sum[i] += copies[i];
          copy_squares[i] += double{copies[i]} * copies[i];
          y_sum[i] += y[i];
        }
      }
      // Per channel: of a single element a rare code may not have come up yet.
      for (int64_t c = 0; c < shape.channels; ++c) {
        const NormActChannel& channel = channels.forward[c];
        const DecodeMap& decode = channels.decode[c];
        double bias = 0;
        double normalized_bias = 0;
        double y_bias = 0;
        double variance = 0;
        for (int64_t i = c; i < shape.rows * shape.channels; i += shape.channels) {
          const float x = problem.values[i];
          const double mean = copy_sum[i] / kDraws;
          bias += mean - s_of(channel, x, z_of(channel, x));
          normalized_bias += decode.p * mean + decode.q - (double{x} - 0.2) * 1.25;
          y_bias += y_sum[i] / kDraws - exact[i];
          variance += copy_squares[i] / kDraws - mean * mean;
        }
        const double error = 5 * std::sqrt(std::max(0.0, variance) / kDraws) + 2e-5 * static_cast<double>(shape.rows);
        EXPECT_NEAR(bias, 0, error) << "bits " << bits << ", channel " << c;
        EXPECT_NEAR(normalized_bias, 0, error + 1e-5 * std::abs(decode.q));
        EXPECT_NEAR(y_bias, 0, std::abs(decode.a) * error + 1e-5);
      }
    }
  }
}

TEST_P(NormAct, ResidualsAreAddedBeforeTheActivation) {
  for (const bool keeps_below : {false, true}) {
    Problem problem = make_problem({37, 48}, GetParam(), 4, keeps_below ? 0.2F : 0.0F);
    problem.keeps_below = keeps_below;
    problem.residual = random_values(37 * 48, 5, false);
    Channels channels(48, true);
    for (int64_t c = 0; c < 48; ++c) {  // the copies are those of z
      channels.forward[c].s_scale = 1.0F;
      channels.forward[c].s_shift = channels.forward[c].linear = 0.0F;
      channels.decode[c] = {1.0F, 0.0F, 1.0F, 0.0F, 0.0F};
    }
    const Result result = run(problem, channels);
    const std::vector<float> x = problem.x();
    const std::vector<float> residual = problem.rounded(problem.residual);
    const std::vector<float> again = output(problem, result.packed, channels.decode, problem.slope);
    for (size_t i = 0; i < x.size(); ++i) {
      const float z = z_of(channels.forward[i % 48], x[i]) + residual[i];
      EXPECT_EQ(result.y[i], problem.rounded({activated(z, z > 0, problem.slope)})[0]);
      EXPECT_NEAR(again[i], result.y[i], 12.0 / 7 * 1.02);
      EXPECT_EQ(again[i] > 0, again[i] > 0 && result.y[i] > 0);
    }
  }
}

TEST_P(NormAct, GradientsAreThoseOfTheCopies) {
  for (const Shape shape : kShapes) {
    for (const bool second : {false, true}) {
      Problem problem = make_problem(shape, GetParam(), 4, 0.25F);
      const Channels channels(shape.channels, true);
      const Result result = run(problem, channels);
      const std::vector<uint8_t> grad = as_elements(random_values(shape.rows * shape.channels, 8, false), GetParam());
      const std::vector<uint8_t> other = as_elements(random_values(shape.rows * shape.channels, 9, false), GetParam());
      const NormActBackward backward{.packed = result.packed.data(),
                                     .bits = problem.bits,
                                     .grad = grad.data(),
                                     .second_grad = second ? other.data() : nullptr,
                                     .type = problem.type,
                                     .layout = problem.layout,
                                     .slope = problem.slope};
      const auto count = static_cast<size_t>(shape.channels);
      std::vector<double> sums(count);
      std::vector<double> copy_sums(count);
      norm_act_sums(backward, channels.decode.data(), 0, problem.layout.row_blocks(), sums.data(), copy_sums.data());
      std::vector<NormActGradient> gradients;
      for (size_t c = 0; c < count; ++c) {
        gradients.push_back({0.5F, 0.25F, -0.125F, channels.decode[c].linear});
      }
      std::vector<uint8_t> grad_input(grad.size());
      norm_act_input_gradient(backward, gradients.data(), grad_input.data(), nullptr, 0, problem.layout.groups());

      // The elements' copies in float32: those of the same group steps.
      const std::vector<float> g = Problem::as_floats(grad, problem.type);
      const std::vector<float> h = Problem::as_floats(other, problem.type);
      const std::vector<float> copies = output(problem, result.packed, channels.identity(), 1.0F);
      const std::vector<float> actual = Problem::as_floats(grad_input, problem.type);
      std::vector<double> expected_sums(count);
      std::vector<double> expected_copy_sums(count);
      const double precision = GetParam() == ElementType::kFloat32 ? 1e-6 : 1e-2;
      for (size_t i = 0; i < g.size(); ++i) {
        const float z = z_of(channels.forward[i % count], problem.x()[i]);
        const float dz = activation_gradient(second ? g[i] + h[i] : g[i], z > 0, problem.slope);
        expected_sums[i % count] += dz;
        expected_copy_sums[i % count] += double{dz} * copies[i];
        EXPECT_NEAR(actual[i], 0.5 * dz + 0.25 * copies[i] - 0.125, precision * (1 + std::abs(copies[i])));
      }
      for (size_t c = 0; c < count; ++c) {
        EXPECT_NEAR(sums[c], expected_sums[c], 1e-9 * static_cast<double>(shape.rows));
        EXPECT_NEAR(copy_sums[c], expected_copy_sums[c], precision * 20 * static_cast<double>(shape.rows));
      }
    }
  }
}

TEST_P(NormAct, AGroupThatIsNotFiniteDecodesToNaN) {
  Problem problem = make_problem({8, 64}, GetParam(), 4, 0.0F);
  problem.values[70] = float_of(kInfinityFloat32);  // row 1: the first group
  const Channels channels(64, true);
  const Result result = run(problem, channels);
  const std::vector<float> copies = output(problem, result.packed, channels.identity(), 1.0F);
  for (size_t i = 0; i < copies.size(); ++i) {
    EXPECT_EQ(std::isnan(copies[i]), i < 4 * 64) << i;
  }
}

TEST(NormActMoments, AreThoseOfTheRows) {
  const Layout layout{2 * kPartRows + 5, 7};
  const std::vector<float> values = random_values(layout.rows * layout.channels, 2, false);
  for (int64_t part = 0; part < 3; ++part) {
    std::vector<double> mean(7);
    std::vector<double> squares(7);
    part_moments(values.data(), ElementType::kFloat32, layout, part, mean.data(), squares.data());
    const int64_t last = std::min((part + 1) * kPartRows, layout.rows);
    for (int64_t c = 0; c < 7; ++c) {
      double sum = 0;
      double sum_of_squares = 0;
      for (int64_t row = part * kPartRows; row < last; ++row) {
        const double x = values[row * 7 + c];
        sum += x;
        sum_of_squares += x * x;
      }
      const auto count = static_cast<double>(last - part * kPartRows);
      EXPECT_NEAR(mean[c], sum / count, 1e-12);
      EXPECT_NEAR(squares[c], sum_of_squares - sum * sum / count, 1e-8);
    }
  }
}

TEST(NormActMoments, OfThePartsAreJoined) {
  const Layout layout{2 * kPartRows + 5, 16};
  std::vector<float> values = random_values(layout.rows * layout.channels, 2, false);
  values[1] = 1e6F;  // where distances count from
  std::vector<double> means(3 * 16);
  std::vector<double> squares(3 * 16);
  for (int64_t part = 0; part < 3; ++part) {
    part_moments(values.data(), ElementType::kFloat32, layout, part, &means[part * 16], &squares[part * 16]);
  }
  std::vector<float> mean(16);
  std::vector<float> variance(16);
  join_moments(means.data(), squares.data(), layout, mean.data(), variance.data());
  for (int64_t c = 0; c < 16; ++c) {
    double sum = 0;
    for (int64_t row = 0; row < layout.rows; ++row) {
      sum += values[row * 16 + c];
    }
    const double expected = sum / static_cast<double>(layout.rows);
    double sum_of_squares = 0;
    for (int64_t row = 0; row < layout.rows; ++row) {
      sum_of_squares += (values[row * 16 + c] - expected) * (values[row * 16 + c] - expected);
    }
    EXPECT_NEAR(mean[c], expected, 1e-7 * std::abs(expected) + 1e-9);
    EXPECT_NEAR(variance[c] * static_cast<double>(layout.rows), sum_of_squares, 1e-7 * sum_of_squares);
  }
}

TEST(NormActMoments, OfNoRowsAreZero) {
  float mean = 1.0F;
  float variance = 1.0F;
  join_moments(nullptr, nullptr, {0, 1}, &mean, &variance);
  EXPECT_EQ(mean, 0.0F);
  EXPECT_EQ(variance, 0.0F);
}

/// The bytes of the format: 5 rows x 3 channels (one lane across, eight along the rows), 3 bits, rounded to nearest.
TEST(NormActFormat, BytesAreTheseAlways) {
  const std::vector<float> values = {1, -2, 3, -1, 2, -3, 0.5F, 0, -0.5F, 2, 2, 2, -3, 1, 0};
  std::vector<NormActChannel> channels(3, {1.0F, 0.0F, 1.0F, 0.0F, 0.0F});
  channels[1] = {1.0F, 1.0F, 1.0F, 0.0F, 1.0F};
  std::vector<float> y(values.size());
  const Layout layout{5, 3};
  std::vector<uint8_t> packed(static_cast<size_t>(layout.bytes(3)), 0xAA);
  std::fill_n(packed.begin(), 16, uint8_t{0});
  norm_act({.x = values.data(),
            .residual = nullptr,
            .y = y.data(),
            .type = ElementType::kFloat32,
            .layout = layout,
            .channels = channels.data(),
            .slope = 0.0F,
            .bits = 3,
            .keeps_below = true,
            .packed = packed.data(),
            .random = {},
            .stochastic = false},
           0, layout.groups());
  EXPECT_EQ(y, (std::vector<float>{1, 0, 3, 0, 3, 0, 0.5F, 1, 0, 2, 3, 2, 0, 2, 0}));
  EXPECT_EQ(packed.size(), 16U + 3 * 32);
  const auto word = [&](int plane, int lane) {
    uint32_t value;
    std::memcpy(&value, packed.data() + 16 + 4 * (plane * 8 + lane), 4);
    return value;
  };
  // Steps of 1 on both sides; the linear grid -3, -1, 1, 3.
  EXPECT_EQ(packed[0] | packed[1] << 8, 0x3F80);
  EXPECT_EQ(packed[2] | packed[3] << 8, 0x3F80);
  // Lane 0 is row 0: values 1, 1 (-2 is at 0.5 and goes to -1), 3; lane 1 is row 1: 1, 3 (2 is at 2.5 and goes to 3),
  // 3.
  EXPECT_EQ(word(0, 0), 0b101U);
  EXPECT_EQ(word(1, 0), 0b111U);
  EXPECT_EQ(word(2, 0), 0b100U);
  EXPECT_EQ(word(0, 1), 0b010U);
  EXPECT_EQ(word(1, 1), 0b111U);
  EXPECT_EQ(word(2, 1), 0b110U);
  for (int lane = 5; lane < 8; ++lane) {
    EXPECT_EQ(word(0, lane), 0U);
  }
}

}  // namespace
}  // namespace actnn::cpu
