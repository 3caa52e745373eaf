#pragma once

#include <cstdint>

#include "actnn/core/activation.h"
#include "actnn/core/columns.h"
#include "actnn/core/norm_act.h"
#include "actnn/core/philox.h"
#include "actnn/core/scalar_types.h"
#include "actnn/cpu/column_pieces.h"

/// \file
/// Normalization with activation on matrices of rows x channels (core/norm_act.h), the passes over elements. The work
/// of a pass is a number of pieces (column_pieces.h), or blocks and parts of rows, which are independent of each other:
/// any division among threads gives the same results. NaNs among them are the canonical ones. The header of a packed
/// tensor, and what lies between parameters and codes, are the caller's.

namespace actnn::cpu {

/// Rows that one part of a sum over rows has.
inline constexpr int64_t kPartRows = 1024;

/// Mean and sum of squared distances from it, of rows [part * kPartRows, ...) of `x`: [channels] each.
void part_moments(const void* x, ElementType type, int64_t rows, int64_t channels, int64_t part, double* mean,
                  double* squares);

/// Mean and (biased) variance of all rows, [channels] each, from those of the parts in their order: [parts, channels]
/// each.
void join_moments(const double* means, const double* squares, int64_t rows, int64_t channels, float* mean,
                  float* variance);

struct NormActForward {
  const void* x;
  const void* residual;  ///< null: none; not with smooth activations
  void* y;               ///< out; null: only copies are wanted
  ElementType type;
  ColumnLayout<int64_t> layout;  ///< masks: those of the activation, or none
  const NormActChannel* channels;
  FusedActivation activation;
  bool keeps_below;  ///< false: copies below a kink are not wanted, and count as 0
  uint8_t* packed;   ///< out: parameters, codes and masks of layout; null if it has none
  RandomState random;
  Rounding rounding;

  /// Whether copies on a side are wanted.
  constexpr bool keeps(bool side) const { return side || keeps_below || !has_kink(activation.function); }
};

/// Pieces [first, last).
void norm_act(const NormActForward& forward, int64_t first, int64_t last);

/// What is kept of the elements, and the gradients that come back. Copies are those in `packed`, unless there is an `x`
/// or there are `normalized` copies, which take their place.
struct NormActBackward {
  const uint8_t* packed;         ///< with its header; null: there is none
  ColumnLayout<int64_t> layout;  ///< rows and channels in any case
  const void* grad;              ///< null where only copies are read
  const void* second_grad;       ///< is added to `grad`; null: none
  ElementType type;              ///< of gradients and results
  FusedActivation activation;
  /// The normalization's input: s = s_scale x + s_shift of `channels_of_x`. Null: none.
  const void* x = nullptr;
  const NormActChannel* channels_of_x = nullptr;
  /// Copies of the normalized input in a packed tensor of their own, without masks. Null: none.
  const uint8_t* normalized = nullptr;
  int normalized_bits = 0;

  ColumnLayout<int64_t> normalized_layout() const {
    return {layout.rows, layout.channels, layout.group_rows, normalized_bits, 0};
  }
};

/// Sums of dz and of dz s over blocks of rows [first, last): [channels] each, added to what is there.
void norm_act_sums(const NormActBackward& backward, const DecodeMap* channels, int64_t first, int64_t last,
                   double* sums, double* copy_sums);

/// The input's gradient of pieces [first, last), and dz, rounded, unless `grad_sum` is null. Each may alias a tensor
/// that is read.
void norm_act_input_gradient(const NormActBackward& backward, const NormActGradient* channels, void* grad_input,
                             void* grad_sum, int64_t first, int64_t last);

/// y of pieces [first, last) again.
void norm_act_output(const NormActBackward& backward, const DecodeMap* channels, void* y, int64_t first, int64_t last);

namespace reference {

/// The definition of the passes, one element after the other.
void part_moments(const void* x, ElementType type, int64_t rows, int64_t channels, int64_t part, double* mean,
                  double* squares);
void norm_act(const NormActForward& forward, int64_t first, int64_t last);
void norm_act_sums(const NormActBackward& backward, const DecodeMap* channels, int64_t first, int64_t last,
                   double* sums, double* copy_sums);
void norm_act_input_gradient(const NormActBackward& backward, const NormActGradient* channels, void* grad_input,
                             void* grad_sum, int64_t first, int64_t last);
void norm_act_output(const NormActBackward& backward, const DecodeMap* channels, void* y, int64_t first, int64_t last);

}  // namespace reference
}  // namespace actnn::cpu
