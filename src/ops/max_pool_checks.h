#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/MemoryFormat.h>
#include <c10/util/ArrayRef.h>

#include <utility>
#include <vector>

#include "actnn/core/max_pool.h"
#include "actnn/core/scalar_types.h"

/// \file
/// The argument checks and shapes of the max-pooling ops, for every device with data.

namespace actnn {

/// The arguments of a window, as the ops get them.
struct MaxPool2dArguments {
  c10::IntArrayRef kernel_size;
  c10::IntArrayRef stride;
  c10::IntArrayRef padding;
  c10::IntArrayRef dilation;
  bool ceil_mode;
};

struct MaxPool2dProblem {
  MaxPool2dShape shape;
  std::vector<int64_t> output_size;
  at::MemoryFormat format;  ///< of input and output
  int64_t positions_bytes;
};

std::pair<ElementType, MaxPool2dProblem> check_max_pool2d_pack(const at::Tensor& input,
                                                               const MaxPool2dArguments& arguments);

/// `size` is the input's.
std::pair<ElementType, MaxPool2dProblem> check_max_pool2d_backward(const at::Tensor& grad_output,
                                                                   const at::Tensor& positions, c10::IntArrayRef size,
                                                                   bool channels_last,
                                                                   const MaxPool2dArguments& arguments);

MaxPool2dProblem check_max_pool2d_indices(const at::Tensor& positions, c10::IntArrayRef size, bool channels_last,
                                          const MaxPool2dArguments& arguments);

}  // namespace actnn
