#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

#include "tests/cpp/cpu/norm_act_problem.h"

/// \file
/// Every instruction set gives the bytes of the reference, in any division into pieces, and writes nothing else.

namespace actnn::cpu {
namespace {

using Layout = ColumnLayout<int64_t>;
using enum ActivationFunction;

/// Whole blocks and cut ones, one piece across and several, vectors of any length that are whole or not.
constexpr std::pair<int64_t, int64_t> kShapes[] = {{1, 8},    {67, 8},   {33, 16},  {40, 24}, {257, 32},
                                                   {300, 40}, {130, 64}, {64, 128}, {70, 72}, {31, 200},
                                                   {7, 3},    {65, 100}, {96, 1},   {259, 17}};

constexpr FusedActivation kActivations[] = {{kIdentity}, {kLeakyReLU, 0.0F}, {kLeakyReLU, -0.1F}, {kReLU6},
                                            {kSiLU},     {kHardswish}};

/// Bytes behind a result that must stay as they are.
constexpr size_t kGuard = 64;
constexpr uint8_t kGuardByte = 0xA5;

void add_guard(Bytes& bytes) { bytes.resize(bytes.size() + kGuard, kGuardByte); }

Bytes without_guard(Bytes bytes) {
  EXPECT_EQ(Bytes(bytes.end() - kGuard, bytes.end()), Bytes(kGuard, kGuardByte)) << "written beyond the end";
  bytes.resize(bytes.size() - kGuard);
  return bytes;
}

/// In two parts, the second first.
template <class Body>
void in_parts(int64_t count, Body&& body) {
  body(count / 3, count);
  body(0, count / 3);
}

struct Forward {
  Bytes y;
  Bytes packed;
  bool operator==(const Forward&) const = default;
};

/// `in_place`: y is written where the residual is.
Forward forward_of(const NormActProblem& problem, bool has_y = true, bool in_place = false) {
  const Bytes x = problem.elements(3);
  const Bytes residual = problem.elements(5);
  const std::vector<NormActChannel> channels = problem.channels();
  Forward result{in_place ? residual : Bytes(x.size()),
                 problem.has_packed() ? empty_packed(problem.layout, problem.random, problem.rounding, 0xCC) : Bytes()};
  add_guard(result.y);
  add_guard(result.packed);
  const NormActForward forward{.x = x.data(),
                               .residual = in_place               ? result.y.data()
                                           : problem.has_residual ? residual.data()
                                                                  : nullptr,
                               .y = has_y ? result.y.data() : nullptr,
                               .type = problem.type,
                               .layout = problem.layout,
                               .channels = channels.data(),
                               .activation = problem.activation,
                               .keeps_below = problem.keeps_below,
                               .packed = problem.has_packed() ? result.packed.data() : nullptr,
                               .random = problem.random,
                               .rounding = problem.rounding};
  in_parts(problem.pieces(), [&](int64_t first, int64_t last) { norm_act(forward, first, last); });
  return {without_guard(std::move(result.y)), without_guard(std::move(result.packed))};
}

/// From where backward has its copies, and whether the two gradients are in the places of what is read.
struct Source {
  bool from_x = false;
  int normalized_bits = 0;
  bool has_second = false;
  bool in_place = false;
};
constexpr Source kSources[] = {{},
                               {.has_second = true, .in_place = true},
                               {.from_x = true},
                               {.normalized_bits = 3},
                               {.from_x = true, .has_second = true, .in_place = true},
                               {.normalized_bits = 8, .has_second = true}};

struct Backward {
  Bytes grad_input;
  Bytes grad_sum;
  Bytes y;
  std::vector<double> sums;
  bool operator==(const Backward& other) const {
    return grad_input == other.grad_input && grad_sum == other.grad_sum && y == other.y &&
           std::memcmp(sums.data(), other.sums.data(), sums.size() * sizeof(double)) == 0;
  }
};

/// NaNs of sums are of any kind.
std::vector<double> with_one_nan(std::vector<double> sums) {
  for (double& sum : sums) {
    sum = std::isnan(sum) ? std::numeric_limits<double>::quiet_NaN() : sum;
  }
  return sums;
}

/// Copies of x-hat in a packed tensor of their own.
Bytes normalized_copies(NormActProblem problem, int bits) {
  problem.activation = {};
  problem.layout.bits = bits;
  problem.layout.masks = 0;
  problem.has_residual = false;
  problem.random.offset += 5;
  return forward_of(problem, false).packed;
}

Backward backward_of(const NormActProblem& problem, const Source& source, const Bytes& packed,
                     const Bytes& normalized) {
  const Layout& layout = problem.layout;
  const std::vector<DecodeMap> decode = problem.decode();
  const std::vector<NormActGradient> gradients = problem.gradients();
  const std::vector<NormActChannel> channels = problem.channels();
  Bytes x = problem.elements(3);
  Bytes grad = problem.elements(8);
  const Bytes second = problem.elements(9);
  Backward result{Bytes(x.size()), Bytes(x.size()), Bytes(x.size()),
                  std::vector<double>(static_cast<size_t>(2 * layout.channels))};
  for (Bytes* bytes : {&x, &grad, &result.grad_input, &result.grad_sum, &result.y}) {
    add_guard(*bytes);
  }
  const NormActBackward backward{.packed = problem.has_packed() ? packed.data() : nullptr,
                                 .layout = layout,
                                 .grad = grad.data(),
                                 .second_grad = source.has_second ? second.data() : nullptr,
                                 .type = problem.type,
                                 .activation = problem.activation,
                                 .x = source.from_x ? x.data() : nullptr,
                                 .channels_of_x = source.from_x ? channels.data() : nullptr,
                                 .normalized = source.normalized_bits != 0 ? normalized.data() : nullptr,
                                 .normalized_bits = source.normalized_bits};
  in_parts(layout.blocks(), [&](int64_t first, int64_t last) {
    norm_act_sums(backward, decode.data(), first, last, result.sums.data(), result.sums.data() + layout.channels);
  });
  in_parts(problem.pieces(), [&](int64_t first, int64_t last) {
    norm_act_output(backward, decode.data(), result.y.data(), first, last);
  });
  Bytes& grad_input = source.in_place && source.from_x ? x : source.in_place ? grad : result.grad_input;
  Bytes& grad_sum = source.in_place && source.from_x ? grad : result.grad_sum;
  in_parts(problem.pieces(), [&](int64_t first, int64_t last) {
    norm_act_input_gradient(backward, gradients.data(), grad_input.data(), source.in_place ? grad_sum.data() : nullptr,
                            first, last);
  });
  return {without_guard(grad_input), without_guard(grad_sum), without_guard(result.y),
          with_one_nan(std::move(result.sums))};
}

/// Every shape with every activation. The other options take turns: each meets each in some shape.
std::vector<NormActProblem> problems(ElementType type, int bits) {
  std::vector<NormActProblem> result;
  unsigned turn = static_cast<unsigned>(bits) * 7;
  for (const auto& [rows, channels] : kShapes) {
    for (const FusedActivation& activation : kActivations) {
      turn = turn * 5 + 3;
      const unsigned options = turn >> 4;
      NormActProblem problem{
          .layout = {.rows = rows, .channels = channels, .bits = bits}, .type = type, .activation = activation};
      problem.layout.group_rows = int64_t{64} << (2 * (options % 2));
      problem.layout.masks = options / 2 % 4 == 0 ? 0 : mask_count(activation.function);
      problem.keeps_below = options / 8 % 2 == 0;
      problem.special = options / 16 % 2 == 0;
      problem.has_residual = !is_smooth(activation.function) && options / 32 % 2 == 0;
      problem.rounding = std::array{Rounding::kDithered, Rounding::kDithered, Rounding::kStochastic,
                                    Rounding::kNearest}[options / 64 % 4];
      result.push_back(problem);
    }
  }
  return result;
}

/// Runs `body` with every target but the reference.
template <class Body>
void for_vector_targets(Body&& body) {
  for_targets([&](const std::string& target) {
    if (target != "reference") {
      body(target);
    }
  });
}

void expect_all_forward_alike(const NormActProblem& problem, bool has_y = true, bool in_place = false) {
  select_target("reference");
  const Forward expected = forward_of(problem, has_y, in_place);
  for_vector_targets([&](const std::string& target) {
    const Forward actual = forward_of(problem, has_y, in_place);
    ASSERT_EQ(actual.packed, expected.packed) << target << ", " << problem.text();
    ASSERT_EQ(actual.y, expected.y) << target << ", " << problem.text();
  });
}

void expect_all_backward_alike(const NormActProblem& problem, const Source& source) {
  if (problem.layout.bits == 0 && !source.from_x && source.normalized_bits == 0) {
    return;  // from nothing
  }
  select_target("reference");
  const Bytes packed = forward_of(problem).packed;
  const Bytes normalized = source.normalized_bits != 0 ? normalized_copies(problem, source.normalized_bits) : Bytes();
  const Backward expected = backward_of(problem, source, packed, normalized);
  for_vector_targets([&](const std::string& target) {
    ASSERT_EQ(backward_of(problem, source, packed, normalized), expected) << target << ", " << problem.text();
  });
}

class NormActTargets : public testing::TestWithParam<std::tuple<ElementType, int>> {};
INSTANTIATE_TEST_SUITE_P(All, NormActTargets, testing::Combine(testing::ValuesIn(kElementTypes), testing::Range(0, 9)));

TEST_P(NormActTargets, AllGiveTheSameBytesInForward) {
  const auto [type, bits] = GetParam();
  unsigned turn = 0;
  for (const NormActProblem& problem : problems(type, bits)) {
    ++turn;
    expect_all_forward_alike(problem, turn % 8 != 0, problem.has_residual && turn % 2 == 0);
    if (HasFatalFailure()) {
      return;
    }
  }
}

TEST_P(NormActTargets, AllGiveTheSameBytesInBackward) {
  const auto [type, bits] = GetParam();
  unsigned turn = 0;
  for (const NormActProblem& problem : problems(type, bits)) {
    // Seven problems a shape and activation apart: not the same sources for an activation always.
    expect_all_backward_alike(problem, kSources[(turn + turn / 6) % std::size(kSources)]);
    ++turn;
    if (HasFatalFailure()) {
      return;
    }
  }
}

TEST_P(NormActTargets, AllGiveTheSameBytesOfHugeAndTinyElements) {
  const auto [type, bits] = GetParam();
  for (const float scale : {1e-44F, 1e-38F, 3e-5F, 1e4F, 1e38F}) {
    for (const int masks : {0, 1}) {
      NormActProblem problem{.layout = {.rows = 70, .channels = 33, .group_rows = 64, .bits = bits, .masks = masks},
                             .type = type,
                             .activation = {kLeakyReLU, 0.25F},
                             .scale = scale};
      expect_all_forward_alike(problem);
      expect_all_backward_alike(problem, kSources[0]);
    }
  }
}

/// Channels of one row have grids of all sizes, on both sides of 0; some cannot be represented.
TEST_P(NormActTargets, AllChooseTheSameGrids) {
  const auto [type, bits] = GetParam();
  for (const int64_t rows : {1, 3}) {
    const NormActProblem problem{.layout = {.rows = rows, .channels = 1000, .group_rows = 64, .bits = bits, .masks = 1},
                                 .type = type,
                                 .activation = {kLeakyReLU, 0.25F},
                                 .any_magnitude = true};
    expect_all_forward_alike(problem);
  }
}

class NormActTargetsOf : public testing::TestWithParam<ElementType> {};
INSTANTIATE_TEST_SUITE_P(All, NormActTargetsOf, testing::ValuesIn(kElementTypes));

/// Large results are written around the cache if they lie well.
TEST_P(NormActTargetsOf, AllGiveTheSameBytesOfLargeTensors) {
  constexpr int64_t kLargeBytes = int64_t{4} << 20;
  constexpr int64_t kChannels = 96;  // two pieces, the last one narrow
  const int64_t rows = kLargeBytes / kChannels / element_size(GetParam()) + 3;
  const NormActProblem problem{.layout = {.rows = rows, .channels = kChannels, .bits = 4, .masks = 1},
                               .type = GetParam(),
                               .activation = {kLeakyReLU}};
  expect_all_forward_alike(problem);
  expect_all_backward_alike(problem, kSources[0]);
}

TEST_P(NormActTargetsOf, AllGiveTheSameMoments) {
  for (const auto& [some_rows, channels] : kShapes) {
    for (const int64_t rows : {some_rows, kPartRows + 3}) {
      for (const bool special : {false, true}) {
        const std::vector<uint8_t> x = as_elements(random_values(rows * channels, 4, special), GetParam());
        const auto moments = [&, count = channels] {
          std::vector<double> result(static_cast<size_t>(2 * count));
          const int64_t part = ceil_div(rows, kPartRows) - 1;
          part_moments(x.data(), GetParam(), rows, count, part, result.data(), result.data() + count);
          return with_one_nan(std::move(result));
        };
        select_target("reference");
        const std::vector<double> expected = moments();
        for_vector_targets([&](const std::string& target) {
          EXPECT_EQ(std::memcmp(moments().data(), expected.data(), expected.size() * sizeof(double)), 0) << target;
        });
      }
    }
  }
}

}  // namespace
}  // namespace actnn::cpu
