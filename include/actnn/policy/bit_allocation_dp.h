#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

/// \file
/// Bits together with sampling: an element (a sample's activation) may also be saved only some of the time, which costs
/// fewer bits on average than quantizing it coarsely every time. Saved with probability p and scaled by 1 / p, its
/// estimate stays unbiased.

namespace actnn {

/// Minimizes, over bits b_i in 1..max_bits and probabilities p_i in {1/states, 2/states, ..., 1}, the variance
///
///     sum of square_norm_i (1 - p_i) / p_i  +  sensitivity_i / (p_i (2^b_i - 1)^2)
///
/// subject to: the sum of p_i b_i is at most target * N. An element is dropped with probability 1 - p_i, which loses
/// its squared norm, else quantized with b_i bits. Solved exactly by dynamic programming over the budget in units of 1
/// / states bit: time N * (N * target * states) * (max_bits * states), memory 2 bytes times N * (N * target * states).
///
/// `square_norm`, `sensitivity`: float32 or float64 [N] on one device; the work is done on the CPU, so another device
/// waits. NaN and infinity count as the largest float32, negative numbers as 0. `max_bits` in 1..8; `target`: bits per
/// element on average, finite, at least 1 / states; `states` in 1..1024. Returns (bits uint8 [N], probability [N] with
/// the dtype of `square_norm`). Deterministic: among equals, the choice with the smallest cost. Not differentiable.
///
/// Errors (c10::ValueError, c10::TypeError): other dtypes, shapes, devices or numbers; a table of more than 2^30
/// entries.
std::tuple<at::Tensor, at::Tensor> allocate_bits_dp(const at::Tensor& square_norm, const at::Tensor& sensitivity,
                                                    int64_t max_bits, double target, int64_t states);

}  // namespace actnn
