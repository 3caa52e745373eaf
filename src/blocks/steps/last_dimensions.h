#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "src/blocks/step.h"

/// \file
/// Rows of norms over the last dimensions.

namespace actnn::blocks {

/// Throws c10::ValueError, with a sentence, for a number of dimensions that is not positive.
inline void check_dimensions(const Step& step, int64_t dimensions) {
  TORCH_CHECK_VALUE(dimensions > 0, "block: ", step.name(), " must normalize over at least one dimension, got ",
                    dimensions);
}

/// The sizes of the last `count` dimensions.
inline Sizes row_sizes(c10::SymIntArrayRef sizes, int64_t count) {
  TORCH_CHECK_VALUE(static_cast<size_t>(count) <= sizes.size(), "block: a norm over the last ", count,
                    " dimensions must have an input of as many or more, got shape ", sizes);
  return sizes.slice(sizes.size() - count).vec();
}

/// The sizes of a number per row: 1 for the last `count` dimensions.
inline Sizes per_row(c10::SymIntArrayRef sizes, int64_t count) {
  Sizes result = sizes.vec();
  std::fill(result.end() - count, result.end(), c10::SymInt(1));
  return result;
}

/// The last `count` dimensions.
inline std::vector<int64_t> last_dimensions(int64_t count) {
  std::vector<int64_t> dimensions(count);
  std::iota(dimensions.begin(), dimensions.end(), -count);
  return dimensions;
}

}  // namespace actnn::blocks
