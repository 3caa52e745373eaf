#pragma once

#include <cstddef>
#include <map>
#include <utility>
#include <vector>

#include "actnn/blocks/plan.h"
#include "src/blocks/step.h"

/// \file
/// A plan, worked out for the gradients that a run wants: what is saved, in which order, and when what is unpacked may
/// go.

namespace actnn::blocks {

struct Schedule {
  /// Where the tensors of a form of a value are, among all that is saved.
  struct Slot {
    size_t first;
    size_t parts;
  };

  std::vector<const Step*> makers;  ///< of values, the plan's stage; none of inputs
  std::vector<bool> wanted_values;  ///< values whose gradients are wanted
  std::vector<bool> wanted_parameters;
  std::map<std::pair<Value, Form>, Slot> slots = {};
  size_t saved_tensors = 0;
  /// The stage of forward after which a value may go: that makes or reads it last; the number of stages for results.
  std::vector<size_t> last_reader = {};
  std::map<Value, size_t> first_copy_reader =
      {};  ///< stage that reads a copy last in backward, to compute others again too
};

/// The values whose gradients are wanted for those of a program's inputs and parameters that are.
std::vector<bool> wanted_values(const Plan& plan, const std::vector<bool>& wanted);

/// Whether a step of unbiased copies is an unbiased copy of its outputs, where some of its inputs are exact.
bool is_linear_in_copies(const Step& step, const PlanOptions& options);

/// `wanted`: of the program's inputs, then of its parameters. `exports`: whether exported copies are made.
Schedule make_schedule(const Plan& plan, const std::vector<bool>& wanted, bool exports);

}  // namespace actnn::blocks
