#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "actnn/autograd/retention.h"
#include "actnn/ops/quantization.h"

namespace actnn {

/// Batch norm over the batches of all ranks of a process group, as `torch.nn.SyncBatchNorm`, saving a quantized copy of
/// x-hat for backward, as `actnn::batch_norm` does. Unlike torch's, it also runs on the CPU.
///
/// `input`: [N, C] or [N, C, ...], float32, float16 or bfloat16, in any memory format; ranks may differ in N, which may
/// be 0, and in the other sizes except C. `weight`, `bias`, `running_mean`, `running_var`: [C] or none, in the type of
/// the input or float32. `group_name`: the name under which the group is registered in every one of its processes:
/// `group.group_name` in Python, in C++ what was given to `c10d::register_process_group`, which does not own the group.
/// The group's backend must reduce float32 and float64 on the input's device (gloo, NCCL).
///
/// Training mode: one all-reduce of 2 C + 1 float64 in forward. Mean and variance are those of the concatenated
/// batches, running statistics are updated alike on all ranks, with the variance over count - 1; if all batches are
/// empty, nothing is. All ranks must call it, and in the same order as the group's other collectives. Backward: one
/// all-reduce of 2 C float32, in each backward in which input wants a gradient, and none otherwise; so that input must
/// want one on all ranks or on none. Every rank that took part in forward must then take part in backward. Gradients of
/// weight and bias are sums over this rank's batch, which the caller sums or averages, as DistributedDataParallel does.
/// Evaluation mode: `actnn::batch_norm`; no collective, and the group need not exist.
///
/// Result, running statistics and the gradient of bias do not depend on the copy. The other gradients are those that
/// `actnn::batch_norm` has of the concatenated batches: that of weight unbiased, that of input up to Var[x-hat] / n.
/// The same inputs give the same result to rounding: the backend chooses the order, and with it the rounding, of sums
/// over ranks. Saves the copy and C + 1 numbers, where a gradient of input or weight is wanted. Double backward
/// raises an error; so do a group that is not registered, and in training mode a torch that was built without its
/// distributed package.
///
/// Source: Ioffe and Szegedy, Batch Normalization, ICML 2015; the statistics are combined as by Chan, Golub and
/// LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979, with raw moments in
/// float64 instead of central ones, so that one reduction suffices.
at::Tensor sync_batch_norm(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                           const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& running_mean,
                           const std::optional<at::Tensor>& running_var, bool training, double momentum, double eps,
                           const std::string& group_name, const Quantization& quantization = {},
                           const std::optional<at::Tensor>& rng_state = std::nullopt, const Retention& retention = {});

}  // namespace actnn
