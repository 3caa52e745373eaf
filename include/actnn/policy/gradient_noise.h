#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

/// \file
/// The noise that a model's compressed activations really add to its gradients: variance over draws / squared norm of
/// the exact gradient, on one batch.

namespace actnn {

/// Collects draws of a list of gradients and estimates from them, without bias for either part and without the exact
/// gradient.
class GradientNoise {
 public:
  /// One draw: the gradients of the same parameters in the same order; undefined ones count as zero.
  /// Errors (c10::ValueError): a number of gradients other than in the draw before.
  void add(const std::vector<at::Tensor>& gradients);

  int64_t draws() const noexcept { return draws_; }

  /// Errors (c10::ValueError): fewer than two draws.
  double variance() const;      ///< sum over elements of their variance
  double squared_norm() const;  ///< of the expectation, which is the exact gradient
  double noise() const;         ///< variance / squared norm

 private:
  double squared_norm_of_sum() const;

  std::vector<at::Tensor> sum_;
  double sum_of_squared_norms_ = 0;
  int64_t draws_ = 0;
};

/// Calls `backward`, which computes the gradients of one and the same batch anew (forward and backward), `draws` times,
/// with all gradients of `parameters` cleared before, and estimates their noise. Gradients that the parameters had are
/// put back. What else differs between two calls, such as dropout, counts as noise; the caller takes care of running
/// statistics. Errors (c10::ValueError): fewer than two draws; no parameter got a gradient.
GradientNoise measure_gradient_noise(const std::vector<at::Tensor>& parameters, const std::function<void()>& backward,
                                     int64_t draws = 2);

}  // namespace actnn
