#pragma once

#include <c10/core/ScalarType.h>

#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

/// \file
/// A straight-line program of steps: what a block computes. Values are numbered: first the inputs, then what each step
/// makes, one after the other. A step names parameters and buffers by their places in the lists that a run is given.

namespace actnn::blocks {

/// A number that stands for something in one list, and is no other list's.
template <class List>
struct Index {
  int64_t number = 0;

  auto operator<=>(const Index&) const = default;  // NOLINT(modernize-use-nullptr): what the compiler writes for it
};

using Value = Index<struct Values>;
using ParameterIndex = Index<struct Parameters>;
using BufferIndex = Index<struct Buffers>;
using IntegerIndex = Index<struct Integers>;

/// The extent of a dimension: a number, -1 for what is left of the elements, or one of the integers that a run is
/// given.
using Extent = std::variant<int64_t, IntegerIndex>;

class Step;
using StepPointer = std::shared_ptr<const Step>;

struct Program {
  int64_t inputs = 1;
  int64_t integers = 0;  ///< sizes that a run is given
  std::vector<StepPointer> steps;
  std::vector<Value> results;
  /// Of each value; empty: all have the run's (block.h).
  std::vector<at::ScalarType> dtypes = {};

  /// Appends a step, numbers its outputs, and returns the first of them. Throws c10::ValueError, with a sentence, for a
  /// step that reads values which are not there yet, or has other fields than it may.
  Value add(std::shared_ptr<Step> step);

  int64_t values() const;
  /// The number of the step that makes a value; none for an input.
  std::optional<size_t> maker(Value value) const;
  /// How many parameters and buffers a run must be given.
  int64_t parameters() const;
  int64_t buffers() const;
};

/// Throws c10::ValueError, with a sentence, unless the program has inputs, steps, and results among its values.
void check_program(const Program& program);

/// A program as JSON, and back (docs/blocks.md lists the steps and their fields):
///
///     {"inputs": 1, "steps": [
///       {"op": "convolution", "inputs": [0], "weight": 0, "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]},
///       {"op": "batch_norm", "inputs": [1], "weight": 1, "bias": 2, "training": true},
///       {"op": "activation", "inputs": [2], "kind": "relu"},
///       {"op": "add", "inputs": [3, 0]}],
///      "results": [4]}
///
/// Throws c10::ValueError, with a sentence, for unknown steps, fields that a step has not, fields of other types.
std::string to_json(const Program& program);
Program program_from_json(const std::string& json);

}  // namespace actnn::blocks
