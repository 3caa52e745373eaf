#include "actnn/autograd/add_act.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "src/autograd/add_act_gradient.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/channel_matrix.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/rounding_names.h"
#include "src/ops/shared_copy.h"

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kAddActName = "actnn::add_act";

FusedActivation activation_of(double slope) {
  return {slope == 1.0 ? ActivationFunction::kIdentity : ActivationFunction::kLeakyReLU, static_cast<float>(slope)};
}

struct Added {
  at::Tensor y;  ///< matrix
  at::Tensor packed;
  at::Tensor decode;
};

Added add(const at::Tensor& input, const at::Tensor& residual, double slope, NormActPacking packing,
          const OptionalTensor& rng_state) {
  const at::Tensor x = as_matrix(input);
  auto [channels, decode] = sum_channels(std::nullopt, x);
  packing.keeps_below = slope != 0.0;
  auto [y, packed] = norm_act(x, as_matrix(residual), channels, activation_of(slope), packing, rng_state);
  return {std::move(y), std::move(packed), std::move(decode)};
}

class AddAct : public torch::autograd::Function<AddAct> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& residual, double slope,
                            const NormActPacking& packing, const OptionalTensor& rng_state) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Added added = add(input, residual, slope, packing, state_for(rng_state, input));
    ctx->save_for_backward({added.packed, added.decode});
    ctx->saved_data["slope"] = slope;
    ctx->saved_data["bits"] = *packing.bits;
    at::Tensor output = from_matrix(added.y, input.sym_sizes());
    share_copy(output, PassCopy{added.packed, added.decode, activation_of(slope), *packing.bits});
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(kAddActName);
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor grad = as_matrix(grad_outputs[0]);
    const NormActCopies copies{saved[0], activation_of(ctx->saved_data["slope"].toDouble()),
                               ctx->saved_data["bits"].toInt()};
    const at::Tensor grad_sum =
        from_matrix(add_act_gradient(copies, grad, std::nullopt, saved[1]), grad_outputs[0].sym_sizes());
    return {ctx->needs_input_grad(0) ? grad_sum : at::Tensor(),
            ctx->needs_input_grad(1) ? grad_sum : at::Tensor(),
            {},
            {},
            {}};
  }
};

NormActPacking check(const at::Tensor& input, const at::Tensor& residual, double negative_slope, int64_t bits,
                     c10::string_view rounding, const OptionalTensor& rng_state) {
  check_floating(kAddActName, "input", input);
  TORCH_CHECK_VALUE(input.dim() >= 2, kAddActName, ": input must have shape [N, C] or [N, C, ...], got shape ",
                    input.sym_sizes());
  TORCH_CHECK_VALUE(input.sym_size(1) > 0, kAddActName, ": input must have channels, got shape ", input.sym_sizes());
  TORCH_CHECK_VALUE(residual.sym_sizes() == input.sym_sizes() && residual.device() == input.device(), kAddActName,
                    ": residual must have shape and device of input, ", input.sym_sizes(), " on ", input.device(),
                    ", got ", residual.sym_sizes(), " on ", residual.device());
  TORCH_CHECK_TYPE(residual.scalar_type() == input.scalar_type(), kAddActName,
                   ": residual must have the dtype of input, ", input.scalar_type(), ", got ", residual.scalar_type());
  TORCH_CHECK_VALUE(bits >= kFewestCopyBits && bits <= kMaxBits, kAddActName, ": bits must be in 2..8, got ", bits);
  check_rng_state(kAddActName, rng_state, input.device());
  return {.bits = code_bits(activation_of(negative_slope), bits), .rounding = rounding_of(kAddActName, rounding)};
}

at::Tensor add_act_autograd(const at::Tensor& input, const at::Tensor& residual, double negative_slope, int64_t bits,
                            c10::string_view rounding, const OptionalTensor& rng_state) {
  const NormActPacking packing = check(input, residual, negative_slope, bits, rounding, rng_state);
  if (at::GradMode::is_enabled() && (wants_grad(input) || wants_grad(residual))) {
    return AddAct::apply(input, residual, negative_slope, packing, rng_state);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return from_matrix(add(input, residual, negative_slope, {.bits = std::nullopt}, std::nullopt).y, input.sym_sizes());
}

/// Without autograd (inference mode) nothing is saved.
at::Tensor add_act_plain(const at::Tensor& input, const at::Tensor& residual, double negative_slope, int64_t bits,
                         c10::string_view rounding, const OptionalTensor& rng_state) {
  check(input, residual, negative_slope, bits, rounding, rng_state);
  return from_matrix(add(input, residual, negative_slope, {.bits = std::nullopt}, std::nullopt).y, input.sym_sizes());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "add_act(Tensor input, Tensor residual, float negative_slope=0.0, int bits=3, str rounding='dithered', "
      "Tensor(z!)? rng_state=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) { m.impl("add_act", add_act_plain); }
TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("add_act", add_act_autograd); }

at::Tensor add_act_gradient(const NormActCopies& copies, const at::Tensor& grad, const OptionalTensor& second_grad,
                            const at::Tensor& decode) {
  const int64_t channels = grad.size(1);
  const at::Tensor no_sums = at::zeros({2, channels}, grad.options().dtype(at::kFloat));
  const at::Tensor ones = at::ones({channels}, no_sums.options());
  const auto numbers = std::get<0>(norm_act_gradients(no_sums, decode, std::nullopt, ones, /*count=*/0));
  return norm_act_input_gradient(copies, grad, second_grad, numbers);
}

at::Tensor add_act(const at::Tensor& input, const at::Tensor& residual, double negative_slope, int64_t bits,
                   Rounding rounding, const OptionalTensor& rng_state) {
  static const auto kOperator = find_op<at::Tensor(const at::Tensor&, const at::Tensor&, double, int64_t,
                                                   c10::string_view, const OptionalTensor&)>(kAddActName);
  return kOperator.call(input, residual, negative_slope, bits, name_of(rounding), rng_state);
}

}  // namespace actnn
