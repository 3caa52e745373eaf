#include "actnn/autograd/linear_cross_entropy.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>

#include "src/autograd/autocast.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/dispatch.h"
#include "src/ops/linear_cross_entropy.h"

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kName = "actnn::linear_cross_entropy";
constexpr const char* kMean = "mean";
constexpr const char* kSum = "sum";

using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const OptionalTensor&, int64_t,
                             double, double, c10::string_view);

const c10::TypedOperatorHandle<Signature>& loss_op() {
  static const auto kHandle = find_op<Signature>(kName);
  return kHandle;
}

LinearCrossEntropy forward_of(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& target,
                              const OptionalTensor& bias, int64_t ignore_index, double label_smoothing, double z_loss,
                              c10::string_view reduction, std::array<bool, 3> wanted) {
  return linear_cross_entropy_forward(input.reshape_symint({-1, input.sym_size(-1)}), weight, bias,
                                      target.reshape_symint({-1}), wanted, ignore_index, label_smoothing, z_loss,
                                      reduction == kMean);
}

class Loss : public torch::autograd::Function<Loss> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& weight,
                            const at::Tensor& target, const OptionalTensor& bias, int64_t ignore_index,
                            double label_smoothing, double z_loss, c10::string_view reduction) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const LinearCrossEntropy found = forward_of(input, weight, target, bias, ignore_index, label_smoothing, z_loss,
                                                reduction, {wants_grad(input), wants_grad(weight), wants_grad(bias)});
    ctx->save_for_backward({found.grad_input, found.grad_weight, found.grad_bias, found.scale});
    ctx->saved_data["input_size"] = input.sym_sizes().vec();
    ctx->saved_data["dtype"] = input.scalar_type();  // of all three
    return found.loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        !at::GradMode::is_enabled(), kName,
        ": its backward cannot be differentiated, because forward computed the gradients; call "
        "backward without create_graph, or use torch's own linear and cross_entropy where second "
        "derivatives are needed");
    const variable_list saved = ctx->get_saved_variables();
    // With a dimension, so that 16-bit gradients are multiplied in float32.
    const at::Tensor scale = (grad_outputs[0] * saved[3]).view({1});
    const at::ScalarType dtype = ctx->saved_data["dtype"].toScalarType();
    const auto scaled = [&](const at::Tensor& sum) {
      if (!sum.defined()) {
        return at::Tensor();
      }
      // Straight into its dtype: in float32 a weight's gradient would be there twice.
      at::Tensor gradient = at::empty_like(sum, sum.options().dtype(dtype));
      return at::mul_out(gradient, sum, scale);
    };
    at::Tensor grad_input = scaled(saved[0]);
    if (grad_input.defined()) {
      grad_input = grad_input.reshape_symint(ctx->saved_data["input_size"].toSymIntVector());
    }
    return {grad_input, scaled(saved[1]), {}, scaled(saved[2]), {}, {}, {}, {}};
  }
};

void check_arguments(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& target,
                     const OptionalTensor& bias, double label_smoothing, double z_loss, c10::string_view reduction) {
  check_linear_cross_entropy(kName, input, weight, target, bias, label_smoothing, z_loss);
  TORCH_CHECK_VALUE(reduction == kMean || reduction == kSum, kName, ": reduction must be 'mean' or 'sum', got '",
                    reduction, "'");
}

/// Without autograd no gradient is computed.
at::Tensor loss_plain(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& target,
                      const OptionalTensor& bias, int64_t ignore_index, double label_smoothing, double z_loss,
                      c10::string_view reduction) {
  check_arguments(input, weight, target, bias, label_smoothing, z_loss, reduction);
  return forward_of(input, weight, target, bias, ignore_index, label_smoothing, z_loss, reduction, {}).loss;
}

at::Tensor loss_autograd(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& target,
                         const OptionalTensor& bias, int64_t ignore_index, double label_smoothing, double z_loss,
                         c10::string_view reduction) {
  check_arguments(input, weight, target, bias, label_smoothing, z_loss, reduction);
  if (at::GradMode::is_enabled() && (wants_grad(input) || wants_grad(weight) || wants_grad(bias))) {
    return Loss::apply(input, weight, target, bias, ignore_index, label_smoothing, z_loss, reduction);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return loss_plain(input, weight, target, bias, ignore_index, label_smoothing, z_loss, reduction);
}

at::Tensor loss_autocast(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& target,
                         const OptionalTensor& bias, int64_t ignore_index, double label_smoothing, double z_loss,
                         c10::string_view reduction) {
  const LowerPrecision lower(input.device().type());
  return loss_op().call(lower.cast(input), lower.cast(weight), target, lower.cast(bias), ignore_index, label_smoothing,
                        z_loss, reduction);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "linear_cross_entropy(Tensor input, Tensor weight, Tensor target, Tensor? bias=None, int ignore_index=-100, "
      "float label_smoothing=0.0, float z_loss=0.0, str reduction='mean') -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) { m.impl("linear_cross_entropy", loss_plain); }
TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("linear_cross_entropy", loss_autograd); }
TORCH_LIBRARY_IMPL(actnn, AutocastCPU, m) { m.impl("linear_cross_entropy", loss_autocast); }
TORCH_LIBRARY_IMPL(actnn, AutocastCUDA, m) { m.impl("linear_cross_entropy", loss_autocast); }

at::Tensor linear_cross_entropy(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& target,
                                const OptionalTensor& bias, const LinearCrossEntropyOptions& options) {
  return loss_op().call(input, weight, target, bias, options.ignore_index, options.label_smoothing, options.z_loss,
                        options.reduction == LossReduction::kMean ? kMean : kSum);
}

}  // namespace actnn
