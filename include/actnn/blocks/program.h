#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "actnn/ops/max_pool.h"

/// \file
/// A straight-line program of layers: what a block computes.
///
/// Values are numbered: first the inputs, then what each step makes. A step names parameters and buffers by their place in the lists
/// that a run is given. Tensors are [N, C, ...].

namespace actnn::blocks {

using Value = int64_t;
using Index = int64_t;

/// `torch.nn.functional.conv1d` to `conv3d`; lists have one entry per spatial dimension.
struct Convolution {
  Value input = 0;
  Index weight = 0;
  std::optional<Index> bias = std::nullopt;
  std::vector<int64_t> stride;
  std::vector<int64_t> padding;
  std::vector<int64_t> dilation;
  int64_t groups = 1;
};

/// `torch.nn.BatchNorm1d` to `BatchNorm3d`. Weight and bias are parameters, the others buffers; none: not there.
struct BatchNorm {
  Value input = 0;
  std::optional<Index> weight = std::nullopt;
  std::optional<Index> bias = std::nullopt;
  std::optional<Index> running_mean = std::nullopt;
  std::optional<Index> running_var = std::nullopt;
  std::optional<Index> num_batches_tracked = std::nullopt;
  std::optional<double> momentum = 0.1;  ///< none: the average over all batches
  double eps = 1e-5;
  /// The process group whose ranks' batches together are the batch, by the name that it is registered under; none: this rank's is.
  std::optional<std::string> group_name = std::nullopt;
};

enum class ActivationKind : int8_t { kReLU, kReLU6, kLeakyReLU, kSiLU, kHardswish };

struct Activation {
  Value input = 0;
  ActivationKind kind = ActivationKind::kReLU;
  double slope = 0.01;  ///< of a leaky ReLU
};

struct Add {
  Value first = 0;
  Value second = 0;
};

struct MaxPool {
  Value input = 0;
  MaxPool2dWindow window{};
};

using Step = std::variant<Convolution, BatchNorm, Activation, Add, MaxPool>;

struct Program {
  int64_t inputs = 1;
  std::vector<Step> steps;

  /// Appends a step and returns its value.
  Value add(Step step);
  /// The result: what the last step makes.
  Value output() const { return values() - 1; }
  Value values() const { return inputs + static_cast<int64_t>(steps.size()); }
  const Step& step_of(Value value) const { return steps[value - inputs]; }

  /// How many parameters and buffers a run must be given.
  int64_t parameters() const;
  int64_t buffers() const;
};

/// The values that a step reads.
std::vector<Value> operands(const Step& step);

/// Throws c10::ValueError, with a sentence, unless every step reads values that are there before it.
void check_program(const Program& program);

/// A program as JSON, and back:
///
///     {"inputs": 1, "steps": [
///       {"op": "convolution", "inputs": [0], "parameters": [0, null], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1],
///        "groups": 1},
///       {"op": "batch_norm", "inputs": [1], "parameters": [1, 2], "buffers": [0, 1, 2], "momentum": 0.1, "eps": 1e-5},
///       {"op": "activation", "inputs": [2], "kind": "relu"},
///       {"op": "add", "inputs": [3, 0]},
///       {"op": "max_pool", "inputs": [4], "kernel_size": [3, 3], "stride": [2, 2], "padding": [1, 1], "dilation": [1, 1],
///        "ceil_mode": false}]}
///
/// A batch norm may have a "group_name" too. Kinds of activations: relu, relu6, leaky_relu (with "slope"), silu, hardswish. Throws c10::ValueError, with a sentence.
std::string to_json(const Program& program);
Program program_from_json(const std::string& json);

}  // namespace actnn::blocks
