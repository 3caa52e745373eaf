#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>

#include "src/blocks/prepared_plan.h"

/// \file
/// Checks of what a run is given. Errors are c10::ValueError.

namespace actnn::blocks {

inline void check_length(const char* what, size_t length, int64_t expected) {
  TORCH_CHECK_VALUE(static_cast<int64_t>(length) == expected, "block: ", what, " must have ", expected,
                    " entries, got ", length);
}

/// Lengths of lists.
struct RunLengths {
  size_t inputs;
  size_t parameters;
  std::optional<size_t> buffers;  ///< none in backward
  size_t integers;
  size_t copies;
};
void check_lengths(const PreparedPlan& prepared, const RunLengths& lengths);

}  // namespace actnn::blocks
