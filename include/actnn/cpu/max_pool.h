#pragma once

#include <cstdint>

#include "actnn/core/max_pool.h"
#include "actnn/core/scalar_types.h"

/// \file
/// 2-D max-pooling that keeps the position of the maximum inside its window (core/max_pool.h).

namespace actnn::cpu {

/// Work items of a problem: planes (n, c) for contiguous tensors, output rows (n, y) for channels_last ones.
int64_t max_pool2d_items(const MaxPool2dShape& shape);

/// Pools items [first, last). The maximum is torch's (`takes_over`).
/// `positions` holds output elements * position_bytes(...) bytes in the output's layout.
void max_pool2d(const MaxPool2dShape& shape, ElementType type, const void* input, void* output, uint8_t* positions,
                int64_t first, int64_t last);

/// Work items of the backward pass: planes (n, c) for contiguous tensors, samples n for channels_last ones. No two
/// items write the same element, and an element's contributions are added in the order of the output: deterministic.
int64_t max_pool2d_backward_items(const MaxPool2dShape& shape);

/// Adds each output gradient to the input gradient at its window's maximum, in the element type (as torch's CPU kernel
/// does). `grad_input` must be zero at the start.
void max_pool2d_backward(const MaxPool2dShape& shape, ElementType type, const void* grad_output,
                         const uint8_t* positions, void* grad_input, int64_t first, int64_t last);

/// The flat index y * input_width + x of each maximum, in the output's layout, as torch's `return_indices` gives it.
void max_pool2d_indices(const MaxPool2dShape& shape, const uint8_t* positions, int64_t* indices, int64_t first,
                        int64_t last);

}  // namespace actnn::cpu
