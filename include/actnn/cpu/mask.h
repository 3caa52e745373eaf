#pragma once

#include <cstdint>

#include "actnn/core/bit_packing.h"
#include "actnn/core/scalar_types.h"

/// \file
/// 1-bit masks: element i in bit i % 8 of byte i / 8. Ranges are in octets (8 elements, one mask byte), so that threads
/// never share a byte; the last octet may be short and its unused bits are 0.

namespace actnn::cpu {

/// Packs bytes that are 0 (false) or anything else (true). `count` elements in all.
void pack_mask(const uint8_t* bools, int64_t count, uint8_t* mask, int64_t first_octet, int64_t last_octet);

/// The inverse: bytes 0 and 1.
void unpack_mask(const uint8_t* mask, int64_t count, uint8_t* bools, int64_t first_octet, int64_t last_octet);

/// One pass of ReLU (core/mask.h): output = input < 0 ? 0 : input, mask = !(input <= 0), which is where the gradient
/// passes. `output` may be `input`.
void relu(const void* input, ElementType type, int64_t count, void* output, uint8_t* mask, int64_t first_octet,
          int64_t last_octet);

/// output = mask ? input : 0. `output` may be `input`.
void apply_mask(const void* input, ElementType type, int64_t count, const uint8_t* mask, void* output,
                int64_t first_octet, int64_t last_octet);

namespace reference {
void relu(const void* input, ElementType type, int64_t count, void* output, uint8_t* mask, int64_t first_octet,
          int64_t last_octet);
void apply_mask(const void* input, ElementType type, int64_t count, const uint8_t* mask, void* output,
                int64_t first_octet, int64_t last_octet);
}  // namespace reference
}  // namespace actnn::cpu
