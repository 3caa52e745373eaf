#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/native_group_norm.h>
#include <ATen/ops/native_group_norm_backward.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <vector>

#include "actnn/autograd/normalization.h"
#include "src/autograd/arguments.h"
#include "src/autograd/autocast.h"
#include "src/autograd/normalization.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/rounding_names.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kGroupNormName = "actnn::group_norm";

/// The layout in which torch's kernels take the input and its gradient.
at::MemoryFormat layout_of(const at::Tensor& input) {
  return input.is_cpu() ? input.suggest_memory_format() : at::MemoryFormat::Contiguous;
}

struct Extents {
  c10::SymInt batch;
  c10::SymInt channels;
  c10::SymInt positions;
};

Extents extents_of(const at::Tensor& input) {
  return {input.sym_size(0), input.sym_size(1), element_count(input.sym_sizes().slice(2).vec())};
}

/// What `at::group_norm` calls: (output, mean, rstd). `input` is in its layout.
auto exact_group_norm(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                      int64_t num_groups, double eps) {
  const auto contiguous = [](const OptionalTensor& tensor) {
    return tensor.has_value() && tensor->defined() ? OptionalTensor(tensor->contiguous()) : std::nullopt;
  };
  const Extents extents = extents_of(input);
  return at::native_group_norm_symint(input, contiguous(weight), contiguous(bias), extents.batch, extents.channels,
                                      extents.positions, num_groups, eps);
}

/// A tensor per sample and group, [N, groups], as one per sample and channel that broadcasts against `input`.
at::Tensor per_channel(const at::Tensor& of_groups, const at::Tensor& input) {
  std::vector<c10::SymInt> size(static_cast<size_t>(input.dim()), 1);
  size[0] = input.sym_size(0);
  size[1] = input.sym_size(1);
  const c10::SymInt channels = input.sym_size(1) / of_groups.sym_size(1);
  return of_groups.unsqueeze(2).expand_symint({size[0], of_groups.sym_size(1), channels}).reshape_symint(size);
}

/// x-hat of `input`, which is in its layout.
at::Tensor normalize(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& rstd, double eps) {
  if (input.is_cuda() && input.sym_numel() != 0) {
    const c10::SymInt groups = mean.sym_numel();
    const at::Tensor rows = input.view_symint({1, groups, input.sym_numel() / groups});
    return normalized_by_channel(rows, mean.view({-1}), rstd.view({-1})).view_symint(input.sym_sizes());
  }
  if (input.scalar_type() == at::kFloat) {
    return normalized_by(input, per_channel(mean, input), per_channel(rstd, input));
  }
  // The mean may have been rounded to 16 bits.
  return std::get<0>(exact_group_norm(input, std::nullopt, std::nullopt, mean.size(1), eps));
}

class GroupNorm : public torch::autograd::Function<GroupNorm> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const OptionalTensor& weight,
                            const OptionalTensor& bias, int64_t num_groups, double eps,
                            const Quantization& quantization, const OptionalTensor& rng_state) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const at::Tensor laid_out = input.contiguous(layout_of(input));
    auto [output, mean, rstd] = exact_group_norm(laid_out, weight, bias, num_groups, eps);
    save_parameter_presence(ctx, weight.has_value(), bias.has_value());
    save_normalization(ctx, {input, weight.value_or(at::Tensor()), bias.value_or(at::Tensor()), rstd}, output,
                       quantization, rng_state,
                       [&, &mean = mean, &rstd = rstd] { return normalize(laid_out, mean, rstd, eps); });
    ctx->saved_data["num_groups"] = num_groups;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(kGroupNormName);
    const SavedNormalization saved = saved_normalization(ctx, grad_outputs[0]);
    // Torch's kernel for channels_last writes the input's gradient, wanted or not.
    const at::MemoryFormat layout = saved.wanted[0] ? layout_of(saved.normalized) : at::MemoryFormat::Contiguous;
    const Extents extents = extents_of(saved.normalized);
    const OptionalTensor weight = saved.weight.defined() ? OptionalTensor(saved.weight.contiguous()) : std::nullopt;
    auto [grad_input, grad_weight, grad_bias] = at::native_group_norm_backward_symint(
        grad_outputs[0].contiguous(layout), saved.normalized.contiguous(layout), saved.zero_mean(), saved.unit_rstd(),
        weight, extents.batch, extents.channels, extents.positions, ctx->saved_data["num_groups"].toInt(),
        saved.wanted);
    if (saved.wanted[0]) {
      grad_input.mul_(per_channel(saved.rstd, grad_input));
    }
    return {grad_input, grad_weight, grad_bias, {}, {}, {}, {}};
  }
};

at::Tensor group_norm_kernel(const at::Tensor& input, int64_t num_groups, const OptionalTensor& weight,
                             const OptionalTensor& bias, double eps, int64_t bits, int64_t group_size,
                             c10::string_view rounding, const OptionalTensor& rng_state) {
  check_floating(kGroupNormName, "input", input);
  TORCH_CHECK_VALUE(input.dim() >= 2, kGroupNormName, ": input must have shape [N, C] or [N, C, ...], got shape ",
                    input.sym_sizes());
  TORCH_CHECK_VALUE(num_groups > 0 && input.sym_size(1) % num_groups == 0, kGroupNormName,
                    ": num_groups must be positive and divide the number of channels ", input.sym_size(1), ", got ",
                    num_groups);
  check_parameter(kGroupNormName, "weight", weight, "[C]", {input.sym_size(1)}, input);
  check_parameter(kGroupNormName, "bias", bias, "[C]", {input.sym_size(1)}, input);
  const Quantization quantization = check_quantization(kGroupNormName, input, bits, group_size, rounding, rng_state);
  if (at::GradMode::is_enabled() && wants_gradients(input, weight, bias)) {
    return GroupNorm::apply(input, weight, bias, num_groups, eps, quantization, rng_state);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return std::get<0>(exact_group_norm(input.contiguous(layout_of(input)), weight, bias, num_groups, eps));
}

const auto& group_norm_op() {
  static const auto kHandle = find_op<decltype(group_norm_kernel)>(kGroupNormName);
  return kHandle;
}

at::Tensor group_norm_autocast(const at::Tensor& input, int64_t num_groups, const OptionalTensor& weight,
                               const OptionalTensor& bias, double eps, int64_t bits, int64_t group_size,
                               c10::string_view rounding, const OptionalTensor& rng_state) {
  const FullPrecision full(input.device().type());
  return group_norm_op().call(full.cast(input), num_groups, full.cast(weight), full.cast(bias), eps, bits, group_size,
                              rounding, rng_state);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "group_norm(Tensor input, int num_groups, Tensor? weight=None, Tensor? bias=None, float eps=1e-05, "
      "int bits=4, int group_size=256, str rounding='dithered', Tensor(a!)? rng_state=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) { m.impl("group_norm", group_norm_kernel); }
TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("group_norm", group_norm_kernel); }
TORCH_LIBRARY_IMPL(actnn, AutocastCUDA, m) { m.impl("group_norm", group_norm_autocast); }

at::Tensor group_norm(const at::Tensor& input, int64_t num_groups, const OptionalTensor& weight,
                      const OptionalTensor& bias, double eps, const Quantization& quantization,
                      const OptionalTensor& rng_state) {
  return group_norm_op().call(input, num_groups, weight, bias, eps, quantization.bits, quantization.group_size,
                              name_of(quantization.rounding), rng_state);
}

}  // namespace actnn
