#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <string>

/// \file
/// Statistics of a batch that is spread over the ranks of a process group. Every rank must call these in the same
/// order. Errors name `caller`; c10::ValueError for a group that is not registered in this process.

namespace actnn {

/// The sum of the ranks' `tensor`, on each of them.
at::Tensor distributed_sum(const char* caller, const at::Tensor& tensor, const std::string& group_name);

/// The statistics of all ranks' batches together.
struct Moments {
  at::Tensor mean;      ///< float32 [C]
  at::Tensor var;       ///< float32 [C], biased
  at::Tensor count;     ///< float64 [1]: elements of a channel, at least 1
  at::Tensor nonempty;  ///< float64 [1]: 1, or 0 if all batches are empty
};

/// From `mean` and biased `var`, floating [C], of this rank's batch with `count` elements of a channel; any finite
/// values if it is empty.
Moments distributed_moments(const char* caller, const at::Tensor& mean, const at::Tensor& var, const c10::SymInt& count,
                            const std::string& group_name);

/// running += momentum (batch - running), with the unbiased variance, where there are running statistics; nothing if
/// all batches are empty. A momentum of none stands for 1 / `num_batches_tracked`.
void update_running(const std::optional<at::Tensor>& running_mean, const std::optional<at::Tensor>& running_var,
                    const Moments& moments, std::optional<double> momentum,
                    const std::optional<at::Tensor>& num_batches_tracked = std::nullopt);

}  // namespace actnn
