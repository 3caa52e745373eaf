#pragma once

#include <c10/util/Exception.h>

#include "src/blocks/step.h"

namespace actnn::blocks {

/// Throws c10::ValueError, with a sentence, for a number of dimensions that is not positive.
inline void check_dimensions(const Step& step, int64_t dimensions) {
  TORCH_CHECK_VALUE(dimensions > 0, "block: ", step.name(), " must normalize over at least one dimension, got ",
                    dimensions);
}

}  // namespace actnn::blocks
