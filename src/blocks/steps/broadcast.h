#pragma once

#include "src/blocks/step.h"

/// \file
/// What steps of several values share.

namespace actnn::blocks {

/// Throws c10::ValueError, with a sentence, unless the step has `count` inputs.
void check_inputs(const Step& step, size_t count);

/// The size that two sizes broadcast to.
Sizes broadcast(const Sizes& first, const Sizes& second);

/// The gradient of an operand of this size that was broadcast.
at::Tensor sum_to(const at::Tensor& grad, const Sizes& size);

}  // namespace actnn::blocks
