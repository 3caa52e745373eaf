#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <vector>

#include "actnn/blocks/program.h"
#include "src/blocks/kept.h"

/// \file
/// What forward and backward both do.

namespace actnn::blocks {

/// The parameter or buffer of an index, none for none.
inline std::optional<at::Tensor> at_index(const std::vector<at::Tensor>& tensors, std::optional<Index> index) {
  return index ? std::optional(tensors[*index]) : std::nullopt;
}

/// Casts the weights and biases of all convolutions among a program's parameters.
void cast_convolutions(const Program& program, std::vector<at::Tensor>& parameters, at::ScalarType dtype);

at::Tensor convolve(const Convolution& convolution, const at::Tensor& input, const std::vector<at::Tensor>& parameters);

/// Gradients of input, weight, bias, those that are wanted.
std::array<at::Tensor, 3> convolution_gradients(const Convolution& convolution, const at::Tensor& grad,
                                                const at::Tensor& input, const at::Tensor& weight,
                                                std::array<bool, 3> wanted);

/// The unbiased copy.
at::Tensor decode(const KeptCopy& copy);

}  // namespace actnn::blocks
