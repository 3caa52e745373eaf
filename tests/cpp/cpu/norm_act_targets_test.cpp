#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "actnn/cpu/norm_act.h"
#include "tests/cpp/cpu/test_data.h"

/// \file
/// Every instruction set gives the bytes of the reference, in any division into groups, and writes nothing else.

namespace actnn::cpu {
namespace {

using Layout = SplitLayout<int64_t>;

/// Memory aligned as torch aligns tensors.
template <class T>
struct TensorAllocator {
  using value_type = T;  // NOLINT(readability-identifier-naming): the standard's
  static constexpr std::align_val_t kAlignment{64};
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kAlignment)); }
  void deallocate(T* memory, size_t /*count*/) { ::operator delete(memory, kAlignment); }
  bool operator==(const TensorAllocator& /*other*/) const { return true; }
};
using Bytes = std::vector<uint8_t, TensorAllocator<uint8_t>>;

/// Whole and cut groups of every number of lanes across, one block of channels and several; and channels that are no
/// octets.
constexpr Layout kLayouts[] = {{1, 8},   {67, 8},  {33, 16}, {40, 24},  {17, 32}, {9, 40},
                               {13, 64}, {7, 128}, {6, 72},  {10, 320}, {7, 3},   {9, 100}};

/// Bytes behind a result that must stay as they are.
constexpr size_t kGuard = 64;
constexpr uint8_t kGuardByte = 0xA5;

Bytes guarded(int64_t size) { return Bytes(static_cast<size_t>(size) + kGuard, kGuardByte); }

void expect_guard(const Bytes& bytes) {
  EXPECT_EQ(Bytes(bytes.end() - kGuard, bytes.end()), Bytes(kGuard, kGuardByte)) << "written beyond the end";
}

/// A matrix of numbers and the channels' maps, of both kinds.
struct Problem {
  Layout layout;
  ElementType type;
  int bits;
  float slope = 0.0F;
  bool keeps_below = true;
  bool has_residual = false;
  bool special = false;
  bool stochastic = true;
  PackedDerivative derivative = {};

  int planes() const { return bits + derivative.bits; }
  int64_t count() const { return layout.rows * layout.channels; }
  /// Some thousand different ones, repeated.
  Bytes elements(unsigned seed) const {
    const std::vector<uint8_t> distinct =
        as_elements(random_values(std::min<int64_t>(count(), 4099), seed, special), type);
    Bytes bytes(static_cast<size_t>(count() * element_size(type)));
    for (size_t i = 0; i < bytes.size(); i += distinct.size()) {
      std::copy_n(distinct.begin(), std::min(distinct.size(), bytes.size() - i),
                  bytes.begin() + static_cast<int64_t>(i));
    }
    return bytes;
  }
  Bytes result() const { return guarded(count() * element_size(type)); }

  std::vector<NormActChannel> channels() const {
    std::vector<NormActChannel> maps;
    for (int64_t c = 0; c < layout.channels; ++c) {
      maps.push_back(forward_channel(0.2F, 1.25F, weight(c), bias(c), true));
    }
    return maps;
  }
  std::vector<DecodeMap> decode() const {
    std::vector<DecodeMap> maps;
    for (int64_t c = 0; c < layout.channels; ++c) {
      maps.push_back(decode_map(weight(c), bias(c), true));
    }
    return maps;
  }
  std::vector<NormActGradient> gradients() const {
    std::vector<NormActGradient> maps;
    for (const DecodeMap& channel : decode()) {
      maps.push_back(gradient_channel(channel, weight(static_cast<int64_t>(maps.size())), 1.25F, 0.01F, 0.02F));
    }
    return maps;
  }
  static float weight(int64_t c) { return std::array{1.0F, -0.7F, 0.0F, 1e-3F, 2.5F, -1e-6F, 0.3F}[c % 7]; }
  static float bias(int64_t c) { return std::array{0.1F, -0.4F, 0.5F, 0.7F, 0.0F, -0.2F, 2.0F, -0.5F}[c % 8]; }
};

/// Runs `body` with every target but the reference.
template <class Body>
void for_vector_targets(Body&& body) {
  for_targets([&](const std::string& target) {
    if (target != "reference") {
      body(target);
    }
  });
}

struct Forward {
  Bytes y;
  Bytes packed;
  bool operator==(const Forward&) const = default;
};

/// In two parts, the second first.
template <class Body>
void in_parts(int64_t count, Body&& body) {
  body(count / 3, count);
  body(0, count / 3);
}

Forward forward_of(const Problem& problem) {
  const Bytes x = problem.elements(3);
  const Bytes residual = problem.elements(5);
  const std::vector<NormActChannel> channels = problem.channels();
  Forward result{problem.result(), guarded(problem.planes() == 0 ? 0 : problem.layout.bytes(problem.planes()))};
  const NormActForward forward{.x = x.data(),
                               .residual = problem.has_residual ? residual.data() : nullptr,
                               .y = result.y.data(),
                               .type = problem.type,
                               .layout = problem.layout,
                               .channels = channels.data(),
                               .slope = problem.slope,
                               .bits = problem.bits,
                               .keeps_below = problem.keeps_below,
                               .packed = result.packed.data(),
                               .random = {0x123456789ABCDEF0, 77},
                               .stochastic = problem.stochastic,
                               .derivative = problem.derivative};
  in_parts(problem.layout.groups(), [&](int64_t first, int64_t last) { norm_act(forward, first, last); });
  expect_guard(result.y);
  expect_guard(result.packed);
  return result;
}

/// From where backward has its copies, and whether the two gradients are in the places of what is read.
struct Source {
  bool from_x;
  bool has_sides = true;
  bool has_second = false;
  bool in_place = false;
};
constexpr Source kSources[] = {{.from_x = false},
                               {.from_x = false, .has_second = true, .in_place = true},
                               {.from_x = true},
                               {.from_x = true, .has_second = true, .in_place = true},
                               {.from_x = true, .has_sides = false}};

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

Backward backward_of(const Problem& problem, const Source& source, const Bytes& packed) {
  const Layout& layout = problem.layout;
  const std::vector<DecodeMap> decode = problem.decode();
  const std::vector<NormActGradient> gradients = problem.gradients();
  const std::vector<NormActChannel> channels = problem.channels();
  Bytes x = problem.elements(3);
  Bytes grad = problem.elements(8);
  const Bytes second = problem.elements(9);
  x.resize(x.size() + kGuard, kGuardByte);
  grad.resize(grad.size() + kGuard, kGuardByte);
  const NormActBackward backward{.packed = source.has_sides ? packed.data() : nullptr,
                                 .bits = problem.bits,
                                 .grad = grad.data(),
                                 .second_grad = source.has_second ? second.data() : nullptr,
                                 .type = problem.type,
                                 .layout = layout,
                                 .slope = source.has_sides ? problem.slope : 1.0F,
                                 .x = source.from_x ? x.data() : nullptr,
                                 .channels_of_x = source.from_x ? channels.data() : nullptr,
                                 .derivative = problem.derivative};
  Backward result{problem.result(), problem.result(), problem.result(),
                  std::vector<double>(static_cast<size_t>(2 * layout.channels))};
  in_parts(layout.row_blocks(), [&](int64_t first, int64_t last) {
    norm_act_sums(backward, decode.data(), first, last, result.sums.data(), result.sums.data() + layout.channels);
  });
  const ActivationFunction function = problem.derivative.function;
  if (function == ActivationFunction::kLeakyReLU || function == ActivationFunction::kReLU6) {
    in_parts(layout.groups(), [&](int64_t first, int64_t last) {
      norm_act_output(backward, decode.data(), result.y.data(), first, last);
    });
  }
  Bytes& grad_input = source.in_place ? x : result.grad_input;
  Bytes& grad_sum = source.in_place ? grad : result.grad_sum;
  in_parts(layout.groups(), [&](int64_t first, int64_t last) {
    norm_act_input_gradient(backward, gradients.data(), grad_input.data(), grad_sum.data(), first, last);
  });
  if (source.in_place) {
    result.grad_input = x;
    result.grad_sum = grad;
  }
  result.sums = with_one_nan(std::move(result.sums));
  expect_guard(result.grad_input);
  expect_guard(result.grad_sum);
  expect_guard(result.y);
  return result;
}

/// Every layout with some combinations of the options.
std::vector<Problem> problems(ElementType type, int bits) {
  std::vector<Problem> result;
  for (const Layout& layout : kLayouts) {
    const Problem plain{.layout = layout, .type = type, .bits = bits};
    for (const bool special : {false, true}) {
      result.push_back(plain);
      result.back().special = special;
      result.back().keeps_below = false;
      result.push_back(plain);
      result.back().special = special;
      result.back().slope = special ? 1.0F : -0.1F;
      result.back().has_residual = true;
      result.back().stochastic = special;
    }
  }
  return result;
}

std::string describe(const std::string& target, const Problem& problem) {
  return target + ", function " + std::to_string(static_cast<int>(problem.derivative.function)) + ", " +
         std::to_string(problem.layout.rows) + " x " + std::to_string(problem.layout.channels) + ", slope " +
         std::to_string(problem.slope) + (problem.special ? ", special" : "") +
         (problem.has_residual ? ", residual" : "");
}

class NormActTargets : public testing::TestWithParam<std::tuple<ElementType, int>> {};
INSTANTIATE_TEST_SUITE_P(All, NormActTargets, testing::Combine(testing::ValuesIn(kElementTypes), testing::Range(2, 9)));

TEST_P(NormActTargets, AllGiveTheSameBytesInForward) {
  const auto [type, bits] = GetParam();
  for (const Problem& problem : problems(type, bits)) {
    select_target("reference");
    const Forward expected = forward_of(problem);
    for_vector_targets(
        [&](const std::string& target) { ASSERT_EQ(forward_of(problem), expected) << describe(target, problem); });
  }
}

TEST_P(NormActTargets, AllGiveTheSameBytesInBackward) {
  const auto [type, bits] = GetParam();
  for (const Problem& problem : problems(type, bits)) {
    select_target("reference");
    const Bytes packed = forward_of(problem).packed;
    for (const Source& source : kSources) {
      select_target("reference");
      const Backward expected = backward_of(problem, source, packed);
      for_vector_targets([&](const std::string& target) {
        ASSERT_EQ(backward_of(problem, source, packed), expected) << describe(target, problem);
      });
    }
  }
}

/// Activations with derivatives, with copies and without.
class NormActDerivedTargets : public testing::TestWithParam<std::tuple<ElementType, ActivationFunction, int>> {
 public:
  std::vector<Problem> derived_problems() const {
    const auto [type, function, derivative_bits] = GetParam();
    std::vector<Problem> result;
    for (const int bits : {0, 2 + derivative_bits / 2}) {
      for (Problem& problem : problems(type, bits)) {
        problem.derivative = {function, derivative_bits};
        result.push_back(problem);
      }
    }
    return result;
  }
};
INSTANTIATE_TEST_SUITE_P(Relu6, NormActDerivedTargets,
                         testing::Combine(testing::ValuesIn(kElementTypes), testing::Values(ActivationFunction::kReLU6),
                                          testing::Values(1)));
INSTANTIATE_TEST_SUITE_P(Smooth, NormActDerivedTargets,
                         testing::Combine(testing::ValuesIn(kElementTypes),
                                          testing::Values(ActivationFunction::kSiLU, ActivationFunction::kHardswish),
                                          testing::Values(1, 4, 7)));

TEST_P(NormActDerivedTargets, AllGiveTheSameBytesInForward) {
  for (const Problem& problem : derived_problems()) {
    select_target("reference");
    const Forward expected = forward_of(problem);
    for_vector_targets(
        [&](const std::string& target) { ASSERT_EQ(forward_of(problem), expected) << describe(target, problem); });
  }
}

TEST_P(NormActDerivedTargets, AllGiveTheSameBytesInBackward) {
  for (const Problem& problem : derived_problems()) {
    select_target("reference");
    const Bytes packed = forward_of(problem).packed;
    for (const Source& source : kSources) {
      if (!source.has_sides || (problem.bits == 0 && !source.from_x)) {
        continue;
      }
      select_target("reference");
      const Backward expected = backward_of(problem, source, packed);
      for_vector_targets([&](const std::string& target) {
        ASSERT_EQ(backward_of(problem, source, packed), expected) << describe(target, problem);
      });
    }
  }
}

class NormActTargetsOf : public testing::TestWithParam<ElementType> {};
INSTANTIATE_TEST_SUITE_P(All, NormActTargetsOf, testing::ValuesIn(kElementTypes));

TEST_P(NormActTargetsOf, AllGiveTheSameOutputWhereNothingIsKept) {
  using enum ActivationFunction;
  for (Problem& problem : problems(GetParam(), 0)) {
    for (const ActivationFunction function : {kLeakyReLU, kReLU6, kSiLU, kHardswish}) {
      problem.derivative.function = function;
      select_target("reference");
      const Forward expected = forward_of(problem);
      for_vector_targets(
          [&](const std::string& target) { ASSERT_EQ(forward_of(problem), expected) << describe(target, problem); });
    }
  }
}

/// Large results are written around the cache if they lie well.
TEST_P(NormActTargetsOf, AllGiveTheSameBytesOfLargeTensors) {
  constexpr int64_t kLargeBytes = int64_t{4} << 20;
  const int64_t rows = kLargeBytes / 64 / element_size(GetParam()) + 3;
  const Problem problem{.layout = {rows, 64}, .type = GetParam(), .bits = 4};
  select_target("reference");
  const Forward expected = forward_of(problem);
  const Backward expected_backward = backward_of(problem, {.from_x = false}, expected.packed);
  for_vector_targets([&](const std::string& target) {
    EXPECT_EQ(forward_of(problem), expected) << target;
    EXPECT_EQ(backward_of(problem, {.from_x = false}, expected.packed), expected_backward) << target;
  });
}

TEST_P(NormActTargetsOf, AllGiveTheSameMoments) {
  for (Layout layout : kLayouts) {
    for (const int64_t rows : {layout.rows, kPartRows + 3}) {
      layout.rows = rows;
      for (const bool special : {false, true}) {
        const std::vector<uint8_t> x = as_elements(random_values(rows * layout.channels, 4, special), GetParam());
        const auto moments = [&] {
          std::vector<double> result(static_cast<size_t>(2 * layout.channels));
          const int64_t part = ceil_div(rows, kPartRows) - 1;
          part_moments(x.data(), GetParam(), layout, part, result.data(), result.data() + layout.channels);
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
