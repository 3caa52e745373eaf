#pragma once

#include "src/blocks/run.h"

/// \file
/// Tensors of the size and layout of a value, which backward makes.

namespace actnn::blocks {

/// An uninitialized tensor of the value's size and layout, of the dtype and device of `like`. For ops that take an
/// input but read its shape only: the memory is real, for some of them may touch it.
at::Tensor empty_like_value(const BackwardRun& run, Value value, const at::Tensor& like);

/// `grad`, which broadcasts to the value's size, in its layout.
at::Tensor spread_to_value(const BackwardRun& run, Value value, const at::Tensor& grad);

}  // namespace actnn::blocks
