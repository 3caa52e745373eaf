#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "actnn/blocks/plan.h"

/// \file
/// A program run as one node of autograd. Forward keeps packed copies only; backward makes activations again, one at a time,
/// gradients of weights before those of inputs, in place where nobody else holds the memory.

namespace actnn::blocks {

/// A planned program, ready to run; copies share it. Safe to use from several threads.
class Block {
 public:
  explicit Block(Program program, const PlanOptions& options = {});
  explicit Block(Plan plan);

  /// The result of the program for `inputs` [N, C, ...] of one dtype (float32, float16 or bfloat16); channels_last if an input or the
  /// weight of a convolution is, else contiguous, by copies at both ends: inside of a block all is channels_last. Gradients of parameters and inputs are unbiased (those of norms up to what a norm's own statistics add). Running
  /// statistics are updated where `batch_statistics`, one per norm in the program's order, is true; else they are used. A norm with a
  /// group then takes the statistics of all ranks' batches, of any sizes: all ranks must run the same blocks in the same order, forward
  /// and backward. Gradients of parameters stay those of the rank. Under autocast
  /// inputs, and the weights of convolutions, are taken in its type. Draws from torch's generator. No host synchronization; deterministic
  /// but for the noise where torch's convolutions are.
  ///
  /// Errors (c10::ValueError, c10::TypeError): lists of other lengths than the program names, dtypes, shapes, groups that are not
  /// registered in this process.
  at::Tensor run(const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& parameters,
                 const std::vector<at::Tensor>& buffers, const std::vector<bool>& batch_statistics) const;

  const Plan& plan() const { return *plan_; }

  /// Bytes that the last run kept for backward, without copies that another block or layer had already; 0 before.
  int64_t kept_bytes() const { return *kept_bytes_; }

 private:
  std::shared_ptr<const Plan> plan_;
  std::shared_ptr<std::atomic<int64_t>> kept_bytes_ = std::make_shared<std::atomic<int64_t>>(0);
};

}  // namespace actnn::blocks
