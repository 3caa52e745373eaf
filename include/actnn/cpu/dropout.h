#pragma once

#include <cstdint>

#include "actnn/core/dropout.h"
#include "actnn/core/philox.h"
#include "actnn/core/scalar_types.h"

/// \file
/// Dropout with a counter-based mask: the mask is recomputed from the random state, so nothing else has to be saved.

namespace actnn::cpu {

struct DropoutArguments {
  const void* input;
  ElementType type;
  int64_t count;
  double probability;  ///< of an element to be dropped, in [0, 1]
  RandomState random;
  void* output;  ///< may be `input`
};

/// output = kept ? input / (1 - probability) : 0 (core/dropout.h) for quads [first_quad, last_quad), rounded to
/// nearest; a NaN becomes the canonical one.
void dropout(const DropoutArguments& arguments, int64_t first_quad, int64_t last_quad);

namespace reference {
void dropout(const DropoutArguments& arguments, int64_t first_quad, int64_t last_quad);
}  // namespace reference
}  // namespace actnn::cpu
