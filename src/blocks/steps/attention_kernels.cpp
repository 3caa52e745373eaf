#include "src/blocks/steps/attention_kernels.h"

#include <ATen/SDPBackend.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <utility>

#include "src/blocks/steps/attention_groups.h"
#include "src/blocks/steps/attention_masks.h"
#include "src/blocks/steps/attention_math.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

using at::SDPBackend;

/// Torch's choice for these arguments, which depends on whether a gradient is wanted: not every kernel's backward takes
/// every size.
SDPBackend choose(const AttentionArguments& arguments, bool trains) {
  // Without data any way will do, and this one is made of operations that know symbolic sizes.
  if (arguments.query.is_meta()) {
    return SDPBackend::math;
  }
  const at::AutoGradMode mode(trains);
  const auto like_torchs = [&](const at::Tensor& tensor) { return trains ? tensor.detach().requires_grad_() : tensor; };
  std::optional<at::Tensor> mask = arguments.mask;
  if (mask && arguments.mask_repeats) {
    mask = mask->narrow(0, 0, 1);  // of a size that is known to broadcast
  }
  if (mask && arguments.mask_trains) {
    mask = like_torchs(*mask);
  }
  const auto choice = static_cast<SDPBackend>(
      at::_fused_sdp_choice(like_torchs(arguments.query), like_torchs(arguments.key), like_torchs(arguments.value),
                            mask, arguments.probability, arguments.causal, arguments.scale, arguments.grouped));
  // Of CUDA's kernels one alone has a gradient of the mask, of the CPU's none.
  const bool is_cuda = arguments.query.is_cuda();
  const bool is_known = (is_cuda && choice == SDPBackend::efficient_attention) ||
                        (!arguments.mask_trains &&
                         (choice == SDPBackend::flash_attention || (is_cuda && choice == SDPBackend::cudnn_attention)));
  return is_known ? choice : SDPBackend::math;
}

double scale_of(const AttentionArguments& arguments) {
  return arguments.scale.value_or(
      1.0 / std::sqrt(static_cast<double>(arguments.query.sym_size(-1).guard_int(__FILE__, __LINE__))));
}

/// Flash attention on CUDA takes head sizes that are multiples of 8; zeros change nothing.
at::Tensor with_padded_heads(const at::Tensor& tensor) {
  const c10::SymInt padding = (8 - tensor.sym_size(-1) % 8) % 8;
  return padding == 0 ? tensor : at::constant_pad_nd_symint(tensor, {0, padding}, 0);
}

at::Tensor without_padding(const at::Tensor& tensor, const at::Tensor& like) {
  return tensor.slice_symint(-1, 0, like.sym_size(-1));
}

/// A kernel's numbers of rows, [batch, heads, length] and perhaps more rows or a dimension behind, as all have them.
at::Tensor common_log_sum_exp(const at::Tensor& tensor, const at::Tensor& query) {
  const at::Tensor rows = tensor.dim() == 4 ? tensor.squeeze(-1) : tensor;
  return with_dtype(rows.slice_symint(2, 0, query.sym_size(2)), at::kFloat).contiguous();
}

/// A kernel's number on the host, where backward reads it without a wait; without data where the query has none.
at::Tensor number_of(SDPBackend kernel, const at::Tensor& query) {
  const c10::Device device = query.is_meta() ? query.device() : c10::Device(at::kCPU);
  return at::scalar_tensor(static_cast<int64_t>(kernel), at::TensorOptions(at::kLong).device(device));
}

/// Whether a tensor has elements, and not only what a graph is traced with.
bool has_data(const at::Tensor& tensor) {
  constexpr c10::DispatchKeySet kTraced({c10::DispatchKey::Python, c10::DispatchKey::Functionalize});
  return !tensor.is_meta() && !tensor.key_set().has_any(kTraced);
}

class CpuFlashAttention {
 public:
  static AttentionResult forward(const AttentionArguments& arguments) {
    auto [output, log_sum_exp] = at::_scaled_dot_product_flash_attention_for_cpu(
        arguments.query, arguments.key, arguments.value, arguments.probability, arguments.causal,
        additive_mask(arguments, -kInfinity), arguments.scale);
    return {.output = std::move(output), .log_sum_exp = std::move(log_sum_exp)};
  }

  static AttentionGradients backward(const AttentionArguments& arguments, const AttentionResult& result,
                                     const at::Tensor& grad) {
    auto [query, key, value] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        grad, arguments.query, arguments.key, arguments.value, result.output, result.log_sum_exp, arguments.probability,
        arguments.causal, additive_mask(arguments, -kInfinity), arguments.scale);
    return {std::move(query), std::move(key), std::move(value), {}};
  }
};

class CudaFlashAttention {
 public:
  static AttentionResult forward(const AttentionArguments& arguments) {
    const auto results = at::_scaled_dot_product_flash_attention(
        with_padded_heads(arguments.query), with_padded_heads(arguments.key), with_padded_heads(arguments.value),
        arguments.probability, arguments.causal, /*return_debug_mask=*/false, scale_of(arguments));
    AttentionResult result{.output = without_padding(std::get<0>(results), arguments.value),
                           .log_sum_exp = std::get<1>(results)};
    if (arguments.probability > 0.0) {
      // Seed and offset, unsigned, in one tensor.
      const at::Tensor state = std::get<6>(results).view(at::kLong);
      result.random_state = {state.select(0, 0).clone(), state.select(0, 1).clone(), {}};
    }
    return result;
  }

  static AttentionGradients backward(const AttentionArguments& arguments, const AttentionResult& result,
                                     const at::Tensor& grad) {
    const auto options = arguments.query.options();
    const at::Tensor state = arguments.probability > 0.0
                                 ? at::stack({result.random_state.seed, result.random_state.offset}).view(at::kUInt64)
                                 : at::empty({2}, options.dtype(at::kUInt64));
    auto [query, key, value] = at::_scaled_dot_product_flash_attention_backward_symint(
        with_padded_heads(grad), with_padded_heads(arguments.query), with_padded_heads(arguments.key),
        with_padded_heads(arguments.value), with_padded_heads(result.output), result.log_sum_exp, at::Tensor(),
        at::Tensor(), arguments.query.sym_size(2), arguments.key.sym_size(2), arguments.probability, arguments.causal,
        state, at::empty({}, options.dtype(at::kUInt64)), scale_of(arguments));
    return {without_padding(query, arguments.query),
            without_padding(key, arguments.key),
            without_padding(value, arguments.value),
            {}};
  }
};

class EfficientAttention {
 public:
  static AttentionResult forward(const AttentionArguments& arguments, bool trains) {
    auto [output, log_sum_exp, seed, offset] = at::_scaled_dot_product_efficient_attention(
        arguments.query, arguments.key, arguments.value, aligned_mask(arguments), trains, arguments.probability,
        arguments.causal, arguments.scale);
    return {.output = std::move(output),
            .log_sum_exp = std::move(log_sum_exp),
            .random_state = {std::move(seed), std::move(offset), {}}};
  }

  static AttentionGradients backward(const AttentionArguments& arguments, const AttentionResult& result,
                                     const at::Tensor& grad, const AttentionWants& wanted) {
    // The kernel reads whole blocks of rows; those beyond the length have no weights.
    constexpr int64_t kBlock = 32;
    const c10::SymInt missing = (kBlock - arguments.query.sym_size(2) % kBlock) % kBlock;
    const bool drops = arguments.probability > 0.0;
    const at::Tensor none = drops ? at::Tensor() : at::zeros({}, at::kLong);
    // It takes for granted that the output lies in memory as it wrote it: [batch, length, heads, head size].
    const at::Tensor output = result.output.transpose(1, 2).contiguous().transpose(1, 2);
    auto [query, key, value, mask] = at::_scaled_dot_product_efficient_attention_backward(
        grad, arguments.query, arguments.key, arguments.value, aligned_mask(arguments).value_or(at::Tensor()), output,
        at::constant_pad_nd_symint(result.log_sum_exp, {0, missing}, kInfinity),
        drops ? result.random_state.seed : none, drops ? result.random_state.offset : none, arguments.probability,
        wanted, arguments.causal, arguments.scale);
    return {std::move(query), std::move(key), std::move(value), std::move(mask)};
  }
};

class CudnnAttention {
 public:
  /// Where torch hides keys from cuDNN, it adds this: infinities made it fail.
  static constexpr double kHidden = -65504.0;

  static AttentionResult forward(const AttentionArguments& arguments, bool trains) {
    const auto results = at::_scaled_dot_product_cudnn_attention(
        arguments.query, arguments.key, arguments.value, additive_mask(arguments, kHidden), trains,
        arguments.probability, arguments.causal, /*return_debug_mask=*/false, arguments.scale);
    return {.output = std::get<0>(results),
            .log_sum_exp = std::get<1>(results),
            .random_state = {std::get<6>(results), std::get<7>(results), {}}};
  }

  static AttentionGradients backward(const AttentionArguments& arguments, const AttentionResult& result,
                                     const at::Tensor& grad) {
    const bool drops = arguments.probability > 0.0;
    const at::Tensor none = drops ? at::Tensor() : at::zeros({}, arguments.query.options().dtype(at::kLong));
    auto [query, key, value] = at::_scaled_dot_product_cudnn_attention_backward_symint(
        grad, arguments.query, arguments.key, arguments.value, result.output, result.log_sum_exp.unsqueeze(-1),
        drops ? result.random_state.seed : none, drops ? result.random_state.offset : none,
        additive_mask(arguments, kHidden).value_or(at::Tensor()), at::Tensor(), at::Tensor(),
        arguments.query.sym_size(2), arguments.key.sym_size(2), arguments.probability, arguments.causal,
        arguments.scale);
    return {std::move(query), std::move(key), std::move(value), {}};
  }
};

AttentionResult run_kernel(SDPBackend kernel, const AttentionArguments& arguments, bool trains) {
  switch (kernel) {
    case SDPBackend::flash_attention:
      return arguments.query.is_cuda() ? CudaFlashAttention::forward(arguments) : CpuFlashAttention::forward(arguments);
    case SDPBackend::efficient_attention:
      return EfficientAttention::forward(arguments, trains);
    case SDPBackend::cudnn_attention:
      return CudnnAttention::forward(arguments, trains);
    default:
      return math_attention_forward(arguments, trains);
  }
}

AttentionGradients run_kernel_backward(SDPBackend kernel, const AttentionArguments& arguments,
                                       const AttentionResult& result, const at::Tensor& grad,
                                       const AttentionWants& wanted) {
  switch (kernel) {
    case SDPBackend::flash_attention:
      return arguments.query.is_cuda() ? CudaFlashAttention::backward(arguments, result, grad)
                                       : CpuFlashAttention::backward(arguments, result, grad);
    case SDPBackend::efficient_attention:
      return EfficientAttention::backward(arguments, result, grad, wanted);
    case SDPBackend::cudnn_attention:
      return CudnnAttention::backward(arguments, result, grad);
    default:
      return math_attention_backward(arguments, result, grad, wanted);
  }
}

/// With a head of key and value for each of the query's.
AttentionArguments without_groups(AttentionArguments arguments) {
  arguments.key = expand_groups(arguments.key, arguments.query);
  arguments.value = expand_groups(arguments.value, arguments.query);
  arguments.grouped = false;
  return arguments;
}

/// What a kernel takes where `chosen` says that none takes groups: products of matrices would need memory for all
/// weights.
std::optional<AttentionArguments> expanded(SDPBackend chosen, const AttentionArguments& arguments, bool trains) {
  if (!arguments.grouped || chosen != SDPBackend::math) {
    return std::nullopt;
  }
  AttentionArguments alone = without_groups(arguments);
  return choose(alone, trains) == SDPBackend::math ? std::nullopt : std::optional(std::move(alone));
}

bool takes_groups(SDPBackend kernel, const AttentionArguments& arguments) {
  return kernel == SDPBackend::math || (arguments.query.is_cuda() && kernel != SDPBackend::efficient_attention);
}

}  // namespace

AttentionResult attention_forward(const AttentionArguments& arguments, bool trains) {
  const SDPBackend kernel = choose(arguments, trains);
  if (const std::optional<AttentionArguments> alone = expanded(kernel, arguments, trains)) {
    return attention_forward(*alone, trains);
  }
  AttentionResult result = run_kernel(kernel, arguments, trains);
  if (trains && kernel != SDPBackend::math) {
    result.log_sum_exp = common_log_sum_exp(result.log_sum_exp, arguments.query);
  }
  if (trains && arguments.probability > 0.0) {
    result.random_state.kernel = number_of(kernel, arguments.query);
  }
  return result;
}

AttentionGradients attention_backward(const AttentionArguments& arguments, const AttentionResult& result,
                                      const at::Tensor& grad, const AttentionWants& wanted) {
  const bool is_chosen = arguments.probability > 0.0 && has_data(result.random_state.kernel);
  const auto kernel = is_chosen ? static_cast<SDPBackend>(result.random_state.kernel.item<int64_t>())
                                : choose(arguments, /*trains=*/true);
  std::optional<AttentionArguments> alone;
  if (!is_chosen) {
    alone = expanded(kernel, arguments, /*trains=*/true);
  } else if (arguments.grouped && !takes_groups(kernel, arguments)) {
    alone = without_groups(arguments);
  }
  if (alone) {
    AttentionGradients gradients = attention_backward(*alone, result, grad, wanted);
    gradients[1] = gradients[1].defined() ? sum_groups(gradients[1], arguments.key) : at::Tensor();
    gradients[2] = gradients[2].defined() ? sum_groups(gradients[2], arguments.value) : at::Tensor();
    return gradients;
  }
  AttentionGradients gradients = run_kernel_backward(kernel, arguments, result, grad, wanted);
  if (wanted[3] && arguments.mask_repeats) {
    gradients[3] = sum_repeated(gradients[3], arguments);
  }
  return gradients;
}

}  // namespace actnn::blocks
