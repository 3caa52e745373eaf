#pragma once

#include <cstdint>

#include "actnn/core/sign_split.h"

/// \file
/// Copies without sides (core/sign_split.h): a packed tensor of linear channels without its plane 0, and with one
/// again. Groups are independent of each other, as in cpu/norm_act.h.

namespace actnn::cpu {

/// Groups [first, last) of `normalized`, of `bits`, from those of `packed`, of `split_bits(bits)`.
void drop_sides(const uint8_t* packed, const SplitLayout<int64_t>& layout, int bits, uint8_t* normalized, int64_t first,
                int64_t last);

/// Groups [first, last) of `packed`, of `split_bits(bits)`, from those of `normalized`, with the sides of `sides`,
/// which are in a packed tensor of `side_bits`; null: all are above.
void add_sides(const uint8_t* normalized, const uint8_t* sides, int side_bits, const SplitLayout<int64_t>& layout,
               int bits, uint8_t* packed, int64_t first, int64_t last);

}  // namespace actnn::cpu
