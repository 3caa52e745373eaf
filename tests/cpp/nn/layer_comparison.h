#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

/// \file
/// Compares layers of actnn::nn with torch's: results bit for bit, gradients as the layer promises.

namespace actnn_test {

inline at::Tensor bits_of(const at::Tensor& tensor) {
  const auto type = tensor.element_size() == 8 ? at::kLong : tensor.element_size() == 4 ? at::kInt : at::kShort;
  return tensor.detach().contiguous().view(type);
}

inline testing::AssertionResult bit_equal(const at::Tensor& actual, const at::Tensor& expected) {
  if (actual.scalar_type() != expected.scalar_type() || actual.sizes() != expected.sizes()) {
    return testing::AssertionFailure() << "got " << actual.toString() << ' ' << actual.sizes() << ", expected "
                                       << expected.toString() << ' ' << expected.sizes();
  }
  const int64_t different = (bits_of(actual) != bits_of(expected)).sum().item<int64_t>();
  if (different != 0) {
    return testing::AssertionFailure()
           << different << " of " << expected.numel() << " elements differ, by up to "
           << (actual.to(at::kDouble) - expected.to(at::kDouble)).abs().max().item<double>();
  }
  return testing::AssertionSuccess();
}

/// |actual - expected| / |expected|, in the Euclidean norm.
inline double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  const at::Tensor exact = expected.detach().to(at::kDouble);
  return ((actual.detach().to(at::kDouble) - exact).norm() / exact.norm()).item<double>();
}

/// A parameter of the tests: element type and memory layout.
using Format = std::tuple<at::ScalarType, bool>;

inline std::string format_name(const testing::TestParamInfo<Format>& info) {
  const auto [dtype, channels_last] = info.param;
  return std::string(c10::toString(dtype)) + (channels_last ? "ChannelsLast" : "Contiguous");
}

inline auto all_formats() {
  return testing::Combine(testing::Values(at::kFloat, at::kBFloat16, at::kHalf), testing::Bool());
}

class LayerTest : public testing::TestWithParam<Format> {
 protected:
  void SetUp() override {
    at::manual_seed(7);
    at::set_num_threads(1);  // the tensors are small
  }

  at::ScalarType dtype() const { return std::get<0>(GetParam()); }

  /// Normally distributed numbers in the format under test.
  at::Tensor input(at::IntArrayRef size) const {
    const at::Tensor values = at::randn(size).to(dtype());
    if (!std::get<1>(GetParam()) || (size.size() != 4 && size.size() != 5)) {
      return values;
    }
    return values.contiguous(size.size() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d);
  }
};

/// Relative errors that the gradients of a layer may have; none: bit for bit.
struct Tolerance {
  std::optional<double> input{};
  std::optional<double> weight{};
  bool exact_input_in_evaluation = true;
};

/// Of a product whose input is kept with 8 bits.
inline constexpr Tolerance kEightBitProduct{.weight = 0.05};

/// Runs forward, with and without gradients, and backward of both in evaluation and training mode. The layers have
/// equal parameters.
template <class Ours, class Theirs>
void expect_same(Ours& ours, Theirs& theirs, const at::Tensor& input, const Tolerance& tolerance = {}) {
  for (const bool training : {false, true}) {
    SCOPED_TRACE(training ? "training" : "evaluation");
    ours->train(training);
    theirs->train(training);
    const at::Tensor our_input = input.detach().clone().requires_grad_();
    const at::Tensor their_input = input.detach().clone().requires_grad_();
    const at::Tensor expected = theirs->forward(their_input);
    const at::Tensor actual = ours->forward(our_input);
    ASSERT_TRUE(bit_equal(actual, expected));
    EXPECT_EQ(actual.strides(), expected.strides());
    {
      const at::NoGradGuard no_grad;
      EXPECT_TRUE(bit_equal(ours->forward(input), theirs->forward(input)));
    }
    const at::Tensor gradient = at::randn(expected.sizes()).to(expected.scalar_type());
    actual.backward(gradient);
    expected.backward(gradient);
    if (tolerance.input && (training || !tolerance.exact_input_in_evaluation)) {
      EXPECT_LT(relative_error(our_input.grad(), their_input.grad()), *tolerance.input);
    } else {
      EXPECT_TRUE(bit_equal(our_input.grad(), their_input.grad()));
    }
    const auto our_parameters = ours->named_parameters();
    for (const auto& parameter : theirs->named_parameters()) {
      const at::Tensor our_gradient = our_parameters[parameter.key()].grad();
      if (parameter.key() == "weight" && tolerance.weight) {
        EXPECT_LT(relative_error(our_gradient, parameter->grad()), *tolerance.weight);
        EXPECT_FALSE(bit_equal(our_gradient, parameter->grad())) << "the input was not compressed";
      } else {
        EXPECT_TRUE(bit_equal(our_gradient, parameter->grad())) << parameter.key();
      }
    }
    ours->zero_grad();
    theirs->zero_grad();
  }
  const auto our_buffers = ours->named_buffers();
  for (const auto& buffer : theirs->named_buffers()) {
    EXPECT_TRUE(bit_equal(our_buffers[buffer.key()], buffer.value())) << buffer.key();
  }
}

/// The same for layers made from options with the same seed.
template <class Ours, class Theirs, class OurOptions, class TheirOptions>
void expect_same_layers(const OurOptions& our_options, const TheirOptions& their_options, const at::Tensor& input,
                        const Tolerance& tolerance = {}) {
  at::manual_seed(11);
  Ours ours(our_options);
  at::manual_seed(11);
  Theirs theirs(their_options);
  const auto our_parameters = ours->named_parameters();
  ASSERT_EQ(our_parameters.keys(), theirs->named_parameters().keys());
  for (const auto& parameter : theirs->named_parameters()) {
    ASSERT_TRUE(bit_equal(our_parameters[parameter.key()], parameter.value())) << parameter.key();
  }
  ours->to(input.scalar_type());
  theirs->to(input.scalar_type());
  expect_same(ours, theirs, input, tolerance);
}

}  // namespace actnn_test
