#pragma once

#include <c10/core/ScalarType.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <limits>

namespace actnn {

/// The smallest integer type that holds 0..count - 1.
inline at::ScalarType smallest_integer_type(const c10::SymInt& count) {
  return count <= int64_t{std::numeric_limits<uint8_t>::max()} + 1   ? at::kByte
         : count <= int64_t{std::numeric_limits<int16_t>::max()} + 1 ? at::kShort
         : count <= int64_t{std::numeric_limits<int32_t>::max()} + 1 ? at::kInt
                                                                     : at::kLong;
}

}  // namespace actnn
