#pragma once

#include <cstdint>

#include "actnn/core/host_device.h"

/// \file
/// Packing of 8 codes of b bits (an *octet*) into b bytes, for b in 1..8: one little-endian stream, code k in bits
/// [k*b, (k+1)*b). For b = 3:
///
///     byte     0                 1                 2
///     bit      7 6 5 4 3 2 1 0 | 7 6 5 4 3 2 1 0 | 7 6 5 4 3 2 1 0
///     code     2 2 1 1 1 0 0 0 | 5 4 4 4 3 3 3 2 | 7 7 7 6 6 6 5 5
///
/// Both directions are three steps that halve (double) the number of fields: 8 x b -> 4 x 2b -> 2 x 4b ->
/// 1 x 8b bits. The vector code takes the same steps in 64-bit lanes, for 1, 2 and 4 bits only those within a byte.

namespace actnn {

inline constexpr int kMinBits = 1;
inline constexpr int kMaxBits = 8;

/// Elements that share one b-byte run of packed codes and half a Philox block.
inline constexpr int64_t kOctet = 8;

/// The constants of the three steps for one bit width. Step i joins the fields of each pair: the low one, under
/// `low[i]`, stays and the high one moves by `shift[i]`.
struct OctetSteps {
  int shift[3];
  uint64_t low[3];
  uint64_t octet;  ///< the 8 * bits bits of a packed octet

  ACTNN_HOST_DEVICE constexpr explicit OctetSteps(int bits)
      : shift{8 - bits, 16 - 2 * bits, 32 - 4 * bits},
        low{0x0001000100010001u * ((uint64_t{1} << bits) - 1), 0x0000000100000001u * ((uint64_t{1} << (2 * bits)) - 1),
            (uint64_t{1} << (4 * bits)) - 1},
        octet(bits == 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * bits)) - 1) {}
};

/// Packs 8 codes, code k in byte k of `codes` and below 2^bits, into the low 8 * bits bits of the result.
ACTNN_HOST_DEVICE constexpr uint64_t pack_octet(uint64_t codes, const OctetSteps& steps) {
  for (int i = 0; i < 3; ++i) {
    const uint64_t low = codes & steps.low[i];
    codes = low | ((codes ^ low) >> steps.shift[i]);
  }
  return codes;
}

/// The inverse of `pack_octet`. Bits of `packed` above 8 * bits are ignored.
ACTNN_HOST_DEVICE constexpr uint64_t unpack_octet(uint64_t packed, const OctetSteps& steps) {
  packed &= steps.octet;
  for (int i = 2; i >= 0; --i) {
    const uint64_t low = packed & steps.low[i];
    packed = low | ((packed ^ low) << steps.shift[i]);
  }
  return packed;
}

}  // namespace actnn
