#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

/// \file
/// Which elements (samples, or layers x samples) get how many bits, so that quantization adds the least variance for a
/// budget (Chen et al., "ActNN", ICML 2021, section 4.2): minimize the sum of sensitivity_i / (2^bits_i - 1)^2 subject
/// to the sum of weight_i * bits_i <= target.
///
/// The greedy answer: from the bits given, again and again take one bit from the element whose variance then rises
/// least per weight, until the target holds or all have 1 bit. Among equals the first element loses a bit first. A NaN
/// sensitivity counts as infinite, a negative one as 0.

namespace actnn {

/// The greedy answer on any device, without waiting for it: every possible decrement is sorted once, since those of an
/// element come in order of their price, and the cheapest that reach the target are taken. All tensors are 1-D of one
/// size N, on one device. `bits`: uint8, 1..8, where to begin; `sensitivity`: float32 or float64; `weight`: int64,
/// above 0; `fewest`: uint8, bits that an element keeps whatever the target is, none for 1. Returns uint8 bits [N].
/// Deterministic; equal to `allocate_bits_greedily` bit for bit. Not differentiable.
///
/// Errors (c10::ValueError, c10::TypeError): other dtypes, shapes or devices.
at::Tensor allocate_bits(const at::Tensor& bits, const at::Tensor& sensitivity, const at::Tensor& weight,
                         int64_t target, const std::optional<at::Tensor>& fewest = std::nullopt);

/// The dual: from the bits given, the cheapest decrements in the same order, as long as the sum of
/// sensitivity_i / (2^bits_i - 1)^2 stays at `allowed` or below; `bits` itself where it is above from the beginning.
/// `allowed`: a floating-point scalar on the same device. Same errors, same determinism.
at::Tensor allocate_bits_for_noise(const at::Tensor& bits, const at::Tensor& sensitivity, const at::Tensor& weight,
                                   const at::Tensor& allowed, const std::optional<at::Tensor>& fewest = std::nullopt);

/// The definition, with a heap: the bits for `sensitivity` and `weight` of one size, beginning with `bits`.
std::vector<uint8_t> allocate_bits_greedily(std::vector<uint8_t> bits, const std::vector<double>& sensitivity,
                                            const std::vector<int64_t>& weight, int64_t target,
                                            const std::vector<uint8_t>& fewest = {});

}  // namespace actnn
