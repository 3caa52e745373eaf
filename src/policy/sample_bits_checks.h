#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace actnn {

void check_allocate_sample_bits(const at::Tensor& range, const std::optional<at::Tensor>& gradient,
                                int64_t initial_bits);
void check_update_gradient_norm(const at::Tensor& gradient, const at::Tensor& norms);

/// A new uint8 tensor with one entry per sample.
at::Tensor empty_sample_bits(const at::Tensor& range);

}  // namespace actnn
