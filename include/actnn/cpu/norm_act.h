#pragma once

#include <cstdint>

#include "actnn/core/activation.h"
#include "actnn/core/norm_act.h"
#include "actnn/core/philox.h"
#include "actnn/core/scalar_types.h"
#include "actnn/core/sign_split.h"

/// \file
/// Normalization with activation on matrices of rows x channels (core/norm_act.h), the passes over elements. Groups,
/// blocks of rows and parts are independent of each other: any division among threads gives the same results. NaNs
/// among them are the canonical ones. What lies between the steps and the words of a packed tensor is not written.

namespace actnn::cpu {

/// Rows that one part of a sum over rows has.
inline constexpr int64_t kPartRows = 1024;

/// Mean and sum of squared distances from it, of rows [part * kPartRows, ...) of `x`: [channels] each.
void part_moments(const void* x, ElementType type, const SplitLayout<int64_t>& layout, int64_t part, double* mean,
                  double* squares);

/// Mean and (biased) variance of all rows, [channels] each, from those of the parts in their order: [parts, channels]
/// each.
void join_moments(const double* means, const double* squares, const SplitLayout<int64_t>& layout, float* mean,
                  float* variance);

struct NormActForward {
  const void* x;
  const void* residual;  ///< null: none
  void* y;               ///< out; null: only copies are wanted, of an activation without derivatives
  ElementType type;
  SplitLayout<int64_t> layout;
  const NormActChannel* channels;
  float slope;
  int bits;          ///< 2..8; 0: no copies
  bool keeps_below;  ///< false: copies below the kink are not wanted, and count as 0
  uint8_t* packed;   ///< out: layout.bytes(planes())
  RandomState random;
  bool stochastic;
  PackedDerivative derivative = {};

  int planes() const { return bits + derivative.bits; }
};

/// Groups [first, last).
void norm_act(const NormActForward& forward, int64_t first, int64_t last);

/// The packed copies and the gradients that come back.
struct NormActBackward {
  const uint8_t* packed;
  int bits;
  const void* grad;         ///< null where only copies are read
  const void* second_grad;  ///< is added to `grad`; null: none
  ElementType type;         ///< of gradients and results
  SplitLayout<int64_t> layout;
  float slope;
  /// The normalization's input, which replaces the copies: s = s_scale x + s_shift of `channels_of_x`. `packed` gives
  /// the sides then, and may be null if `slope` is 1. Null: none.
  const void* x = nullptr;
  const NormActChannel* channels_of_x = nullptr;
  /// In the planes of `packed` after those of the copies, of which there may then be none if there is x.
  PackedDerivative derivative = {};

  int planes() const { return bits + derivative.bits; }
};

/// Sums of dz and of dz s over blocks of rows [first, last): [channels] each, added to what is there.
void norm_act_sums(const NormActBackward& backward, const DecodeMap* channels, int64_t first, int64_t last,
                   double* sums, double* copy_sums);

/// The input's gradient of groups [first, last), and dz, rounded, unless `grad_sum` is null. Each may alias a tensor
/// that is read.
void norm_act_input_gradient(const NormActBackward& backward, const NormActGradient* channels, void* grad_input,
                             void* grad_sum, int64_t first, int64_t last);

/// y of groups [first, last) again, from the copies; not of smooth activations.
void norm_act_output(const NormActBackward& backward, const DecodeMap* channels, void* y, int64_t first, int64_t last);

namespace reference {

/// The definition of the passes, one element after the other.
void part_moments(const void* x, ElementType type, const SplitLayout<int64_t>& layout, int64_t part, double* mean,
                  double* squares);
void norm_act(const NormActForward& forward, int64_t first, int64_t last);
void norm_act_sums(const NormActBackward& backward, const DecodeMap* channels, int64_t first, int64_t last,
                   double* sums, double* copy_sums);
void norm_act_input_gradient(const NormActBackward& backward, const NormActGradient* channels, void* grad_input,
                             void* grad_sum, int64_t first, int64_t last);
void norm_act_output(const NormActBackward& backward, const DecodeMap* channels, void* y, int64_t first, int64_t last);

}  // namespace reference
}  // namespace actnn::cpu
