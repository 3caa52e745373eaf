#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "actnn/blocks/block.h"

/// \file
/// Programs of one step or a few, as JSON, against autograd of torch's functions: results and gradients, in float32 and
/// bfloat16, contiguous and channels_last.

namespace actnn::blocks {

using Tensors = std::vector<at::Tensor>;
using Shapes = std::vector<std::vector<int64_t>>;

/// What must be equal bit by bit, and what only up to rounding.
enum class Exactness { kEqual, kRounded };

struct Case {
  const char* name;
  Shapes inputs;
  std::string steps;  ///< JSON
  std::vector<int64_t> results;
  std::function<Tensors(const Tensors& inputs, const Tensors& parameters)> expected;
  Exactness exactness = Exactness::kRounded;
  Shapes parameters = {};
  std::vector<int64_t> integers = {};
  bool in_float_only = false;  ///< torch has it in no other dtype on the CPU
};

inline void PrintTo(const Case& test, std::ostream* out) {  // NOLINT(readability-identifier-naming): GoogleTest's
  *out << test.name;
}

inline std::string program_text(const Case& test) {
  const auto list = [](const std::vector<int64_t>& numbers) {
    std::string text;
    for (const int64_t number : numbers) {
      text += (text.empty() ? "" : ", ") + std::to_string(number);
    }
    return "[" + text + "]";
  };
  return "{\"inputs\": " + std::to_string(test.inputs.size()) +
         ", \"integers\": " + std::to_string(test.integers.size()) + ", \"steps\": [" + test.steps +
         "], \"results\": " + list(test.results) + "}";
}

struct Format {
  at::ScalarType dtype;
  bool channels_last;
};

inline Tensors random_leaves(const Shapes& shapes, const Format& format) {
  Tensors tensors;
  for (const std::vector<int64_t>& shape : shapes) {
    at::Tensor tensor = at::randn(shape).to(format.dtype);
    if (format.channels_last && (shape.size() == 4 || shape.size() == 5)) {
      tensor = tensor.contiguous(shape.size() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d);
    }
    tensors.push_back(tensor.requires_grad_());
  }
  return tensors;
}

/// Gradients of `leaves`; undefined where nothing led to one.
inline Tensors gradients(const Tensors& results, const Tensors& cotangents, const Tensors& leaves) {
  for (const at::Tensor& leaf : leaves) {
    leaf.mutable_grad() = at::Tensor();
  }
  at::Tensor sum = at::zeros({}, at::kDouble);
  for (size_t result = 0; result < results.size(); ++result) {
    sum = sum + (results[result].to(at::kDouble) * cotangents[result]).sum();
  }
  sum.backward();
  Tensors grads;
  for (const at::Tensor& leaf : leaves) {
    grads.push_back(leaf.grad());
  }
  return grads;
}

inline double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  const at::Tensor exact = expected.detach().to(at::kDouble);
  return ((actual.detach().to(at::kDouble) - exact).norm() / exact.norm()).item<double>();
}

inline void expect_same(const at::Tensor& actual, const at::Tensor& expected, Exactness exactness) {
  ASSERT_EQ(actual.sizes(), expected.sizes());
  ASSERT_EQ(actual.scalar_type(), expected.scalar_type());
  if (exactness == Exactness::kEqual) {
    EXPECT_TRUE(actual.equal(expected));
  } else {
    EXPECT_LT(relative_error(actual, expected), actual.scalar_type() == at::kFloat ? 1e-6 : 4e-3);
  }
}

/// One step that reads input 0.
inline std::string step(const std::string& op, const std::string& fields) {
  return R"({"op": ")" + op + R"(", "inputs": [0], )" + fields + "}";
}

using List = std::vector<int64_t>;

/// A function of the first input.
template <class Function>
auto of_input(Function function) {
  return [=](const Tensors& x, const Tensors&) -> Tensors { return {function(x[0])}; };
}

class StepComparison : public testing::TestWithParam<Case> {
 protected:
  void compare_in_all_formats(const Case& test) {
    for (const bool channels_last : {false, true}) {
      compare(test, {at::kFloat, channels_last});
      if (!test.in_float_only) {
        compare(test, {at::kBFloat16, channels_last});
      }
    }
  }

  void expect_saves_nothing(const Case& test) {
    const Block steps = block(test);
    const Tensors inputs = random_leaves(test.inputs, {at::kFloat, false});
    EXPECT_TRUE(steps.run(inputs, {}, {}, {test.integers.begin(), test.integers.end()})[0].requires_grad());
    EXPECT_EQ(steps.saved_bytes(), 0);
  }

 private:
  void compare(const Case& test, const Format& format) {
    SCOPED_TRACE(std::string(c10::toString(format.dtype)) + (format.channels_last ? " channels_last" : " contiguous"));
    const Tensors inputs = random_leaves(test.inputs, format);
    const Tensors parameters = random_leaves(test.parameters, format);
    const std::vector<c10::SymInt> integers(test.integers.begin(), test.integers.end());
    const Tensors results = block(test).run(inputs, parameters, {}, integers);
    const Tensors expected = test.expected(inputs, parameters);
    ASSERT_EQ(results.size(), expected.size());
    Tensors cotangents;
    for (size_t result = 0; result < results.size(); ++result) {
      expect_same(results[result], expected[result], test.exactness);
      cotangents.push_back(at::randn(expected[result].sizes(), at::kDouble));
    }
    Tensors leaves = inputs;
    leaves.insert(leaves.end(), parameters.begin(), parameters.end());
    const Tensors grads = gradients(results, cotangents, leaves);
    const Tensors expected_grads = gradients(expected, cotangents, leaves);
    for (size_t leaf = 0; leaf < leaves.size(); ++leaf) {
      SCOPED_TRACE("gradient " + std::to_string(leaf));
      ASSERT_TRUE(grads[leaf].defined());
      if (leaf < inputs.size()) {
        expect_same(grads[leaf], expected_grads[leaf], test.exactness);
      } else {
        // Weights' gradients read copies of 8 bits.
        EXPECT_LT(relative_error(grads[leaf], expected_grads[leaf]), 0.02);
      }
    }
  }

  static Block block(const Case& test) {
    return Block(plan_from_json(R"({"program": )" + program_text(test) + R"(, "options": {"bits": 8}})"));
  }
};

inline std::string case_name(const testing::TestParamInfo<Case>& info) { return info.param.name; }

}  // namespace actnn::blocks
