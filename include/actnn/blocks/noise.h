#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "actnn/blocks/program.h"

/// \file
/// How much noise each copy that blocks save adds to the gradients, and the bits that follow from it.
///
/// The contributions of copies to the variance of the gradient add up, for their noise is independent: each is
/// sensitivity / (2^bits - 1)^2, with the bits of its codes, since the step of a grid is its range / (2^bits - 1).

namespace actnn::blocks {

/// What blocks of one name save of a value.
struct ValueNoise {
  std::string block;  ///< `Plan::name`
  Value value;        ///< as `PlanOptions::value_bits` names it
  int64_t bits;       ///< as `PlanOptions::value_bits` counts them
  int64_t side;       ///< how many of those are none of the code
  int64_t fewest;     ///< bits that it may have: with fewer the plan would be another, or a derivative biased
  int64_t most;
  int64_t elements;
  double sensitivity;
};

struct MeasuredRuns;

/// Measures sensitivities in backward. Blocks whose forward runs between `start` and `finish` take part, those of all
/// threads: each draws the noise of its copies anew, one copy after the other, and computes its gradients again from
/// the tensors it has saved. That is four more backwards of the block for each copy that it reads, and one for each of
/// its results, which tells what noise in the result's gradient, from blocks behind it, does to the block's gradients
/// and those of its inputs. With that, noise is followed through all blocks in front; between blocks it passes as it
/// is. To first order: noise of noise does not count.
///
/// Nothing waits for the device until `finish`, and other steps cost nothing. Takes no part: what a compiler has
/// traced, and runs that a CUDA graph captures. The results of backward are what they are without it. Draws from
/// torch's generator.
class BlockNoise : public torch::CustomClassHolder {
 public:
  BlockNoise() = default;
  ~BlockNoise() override;

  /// Begins a pass: forwards and backwards of a step, of blocks whose names begin with one of `prefixes`. Returns
  /// whether it could: in a process one can be measured at a time.
  bool start(const std::vector<std::string>& prefixes = {""});
  /// Ends a pass that counts for nothing; does nothing without one.
  void cancel();
  /// Ends a pass; `gradients` are those of all parameters, as its backwards left them, undefined ones count as 0.
  /// Returns whether it counts: something was measured, and all of it is finite. Waits for the device. Errors
  /// (c10::ValueError): no pass has begun.
  bool finish(const std::vector<at::Tensor>& gradients);

  int64_t passes() const noexcept { return passes_; }

  /// Means over passes; bits are those of the last one.
  std::vector<ValueNoise> values() const;
  /// Of the exact gradient, estimated.
  double squared_norm() const;

  /// Variance of the gradient / its squared norm, with these bits for `values`.
  double noise(const std::vector<int64_t>& bits) const;
  /// What the blocks of a pass keep for backward with these bits for `values`.
  int64_t kept_bytes(const std::vector<int64_t>& bits) const;
  /// Bits for `values`: the fewest bytes whose noise is at most this; all that a value may have where that is not
  /// enough.
  std::vector<int64_t> bits_for_noise(double noise) const;
  /// The same: the least noise with at most so many bytes kept; the fewest that a value may have where those are more.
  std::vector<int64_t> bits_for_bytes(int64_t bytes) const;

 private:
  void add(ValueNoise value);
  std::vector<ValueNoise> values_with(const std::vector<int64_t>& bits) const;
  std::vector<int64_t> with_sides(std::vector<int64_t> codes) const;

  std::shared_ptr<MeasuredRuns> runs_;  ///< of the pass that has begun
  std::vector<ValueNoise> values_;      ///< sums over passes
  double squared_norm_ = 0;             ///< of the noisy gradients, summed over passes
  int64_t other_bytes_ = 0;             ///< kept besides the codes of `values`, in all passes
  int64_t passes_ = 0;
};

}  // namespace actnn::blocks
