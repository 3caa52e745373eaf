#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "actnn/blocks/plan.h"

/// \file
/// A program run as one node of autograd. Forward saves packed copies only, as saved variables that hooks see; backward
/// makes activations again, one at a time, gradients of weights before those of inputs, in place where nobody else
/// holds the memory.

namespace actnn::blocks {

struct PreparedPlan;

/// A planned program, ready to run; copies share it. Safe to use from several threads.
class Block {
 public:
  explicit Block(Program program, const PlanOptions& options = {});
  explicit Block(Plan plan);

  /// The results of the program, then the tensors of the copies that the plan exports. Floating inputs are float32,
  /// float16 or bfloat16; where the program names no dtypes, all values have the type of autocast or of the first
  /// input, which parameters that are multiplied must have, too. Values [N, C, ...] are channels_last inside; results
  /// are channels_last if an input or the weight of a convolution is, else contiguous, by copies at both ends.
  /// Gradients of parameters and inputs are unbiased (those of norms up to what a norm's own statistics add). A batch
  /// norm in training updates its running statistics; one with a group takes the statistics of all ranks' batches, of
  /// any sizes: all ranks must run the same blocks in the same order, forward and backward. Gradients of parameters
  /// stay those of the rank. Draws from torch's generator. No host synchronization; deterministic but for the noise
  /// where torch's functions are.
  ///
  /// `integers`: those that the program names; `copies`: the tensors of the imports, in order. Of a plan without
  /// imports, copies that another block has packed of its results, which are inputs here, are found and used.
  ///
  /// Errors (c10::ValueError, c10::TypeError): lists of other lengths than the program names, dtypes, devices, groups
  /// that are not registered in this process.
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& parameters,
                              const std::vector<at::Tensor>& buffers, const std::vector<c10::SymInt>& integers = {},
                              const std::vector<at::Tensor>& copies = {}) const;

  const Plan& plan() const;

  /// Bytes that the last run saved for backward, without imported copies; 0 before.
  int64_t saved_bytes() const;

 private:
  std::shared_ptr<const PreparedPlan> prepared_;
};

}  // namespace actnn::blocks
