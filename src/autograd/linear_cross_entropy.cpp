#include "actnn/autograd/linear_cross_entropy.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <utility>

#include "src/autograd/autocast.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/dispatch.h"
#include "src/ops/linear_cross_entropy.h"

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using LossAndLogits = std::tuple<at::Tensor, at::Tensor>;

constexpr const char* kName = "actnn::linear_cross_entropy";
constexpr const char* kBoth = "actnn::linear_cross_entropy_and_logits";
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
                              c10::string_view reduction, std::array<bool, 3> wanted, bool returns_logits) {
  LinearCrossEntropy found = linear_cross_entropy_forward(input.reshape_symint({-1, input.sym_size(-1)}), weight, bias,
                                                          target.reshape_symint({-1}), wanted, ignore_index,
                                                          label_smoothing, z_loss, reduction == kMean, returns_logits);
  if (returns_logits) {
    std::vector<c10::SymInt> size = input.sym_sizes().vec();
    size.back() = weight.sym_size(0);
    found.logits = found.logits.view_symint(size);
  }
  return found;
}

/// Adds what a gradient of the logits does to the loss' own gradients.
void add_gradients_of_logits(const at::Tensor& grad_logits, const at::Tensor& input, const at::Tensor& weight,
                             std::array<at::Tensor, 3>& gradients) {
  const at::Tensor grad = grad_logits.reshape_symint({-1, grad_logits.sym_size(-1)});
  const at::Tensor x = input.reshape_symint({-1, input.sym_size(-1)});
  if (gradients[0].defined()) {
    gradients[0] = gradients[0] + grad.mm(weight).reshape_symint(gradients[0].sym_sizes());
  }
  if (gradients[1].defined()) {
    gradients[1] = gradients[1] + grad.t().mm(x);
  }
  if (gradients[2].defined()) {
    gradients[2] = gradients[2] + grad.sum(0);
  }
}

/// Of the loss alone (`kLogits` false), or with the logits, which may have gradients of their own.
template <bool kLogits>
class Loss : public torch::autograd::Function<Loss<kLogits>> {
 public:
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& weight,
                               const at::Tensor& target, const OptionalTensor& bias, int64_t ignore_index,
                               double label_smoothing, double z_loss, c10::string_view reduction) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const LinearCrossEntropy found =
        forward_of(input, weight, target, bias, ignore_index, label_smoothing, z_loss, reduction,
                   {wants_grad(input), wants_grad(weight), wants_grad(bias)}, kLogits);
    variable_list saved{found.grad_input, found.grad_weight, found.grad_bias, found.scale};
    if (kLogits) {
      saved.insert(saved.end(), {input, weight});
      ctx->set_materialize_grads(false);
    }
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["input_size"] = input.sym_sizes().vec();
    ctx->saved_data["dtype"] = input.scalar_type();  // of all three
    return kLogits ? variable_list{found.loss, found.logits} : variable_list{found.loss};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        !at::GradMode::is_enabled(), kName,
        ": its backward cannot be differentiated, because forward computed the gradients; call "
        "backward without create_graph, or use torch's own linear and cross_entropy where second "
        "derivatives are needed");
    const variable_list saved = ctx->get_saved_variables();
    // With a dimension, so that 16-bit gradients are multiplied in float32.
    const at::Tensor scale =
        (grad_outputs[0].defined() ? grad_outputs[0] * saved[3] : at::zeros_like(saved[3])).view({1});
    const at::ScalarType dtype = ctx->saved_data["dtype"].toScalarType();
    const auto scaled = [&](const at::Tensor& sum) {
      if (!sum.defined()) {
        return at::Tensor();
      }
      // Straight into its dtype: in float32 a weight's gradient would be there twice.
      at::Tensor gradient = at::empty_like(sum, sum.options().dtype(dtype));
      return at::mul_out(gradient, sum, scale);
    };
    std::array<at::Tensor, 3> gradients{scaled(saved[0]), scaled(saved[1]), scaled(saved[2])};
    if (gradients[0].defined()) {
      gradients[0] = gradients[0].reshape_symint(ctx->saved_data["input_size"].toSymIntVector());
    }
    if (kLogits && grad_outputs[1].defined()) {
      add_gradients_of_logits(grad_outputs[1], saved[4], saved[5], gradients);
    }
    return {gradients[0], gradients[1], {}, gradients[2], {}, {}, {}, {}};
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
  return forward_of(input, weight, target, bias, ignore_index, label_smoothing, z_loss, reduction, {}, false).loss;
}

LossAndLogits both_plain(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& target,
                         const OptionalTensor& bias, int64_t ignore_index, double label_smoothing, double z_loss,
                         c10::string_view reduction) {
  check_arguments(input, weight, target, bias, label_smoothing, z_loss, reduction);
  const LinearCrossEntropy found =
      forward_of(input, weight, target, bias, ignore_index, label_smoothing, z_loss, reduction, {}, true);
  return {found.loss, found.logits};
}

bool trains(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias) {
  return at::GradMode::is_enabled() && (wants_grad(input) || wants_grad(weight) || wants_grad(bias));
}

at::Tensor loss_autograd(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& target,
                         const OptionalTensor& bias, int64_t ignore_index, double label_smoothing, double z_loss,
                         c10::string_view reduction) {
  check_arguments(input, weight, target, bias, label_smoothing, z_loss, reduction);
  if (trains(input, weight, bias)) {
    return Loss<false>::apply(input, weight, target, bias, ignore_index, label_smoothing, z_loss, reduction)[0];
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return loss_plain(input, weight, target, bias, ignore_index, label_smoothing, z_loss, reduction);
}

LossAndLogits both_autograd(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& target,
                            const OptionalTensor& bias, int64_t ignore_index, double label_smoothing, double z_loss,
                            c10::string_view reduction) {
  check_arguments(input, weight, target, bias, label_smoothing, z_loss, reduction);
  if (trains(input, weight, bias)) {
    const variable_list results =
        Loss<true>::apply(input, weight, target, bias, ignore_index, label_smoothing, z_loss, reduction);
    return {results[0], results[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return both_plain(input, weight, target, bias, ignore_index, label_smoothing, z_loss, reduction);
}

template <class Op>
auto in_lower_precision(const Op& op, const at::Tensor& input, const at::Tensor& weight, const at::Tensor& target,
                        const OptionalTensor& bias, int64_t ignore_index, double label_smoothing, double z_loss,
                        c10::string_view reduction) {
  const LowerPrecision lower(input.device().type());
  return op.call(lower.cast(input), lower.cast(weight), target, lower.cast(bias), ignore_index, label_smoothing, z_loss,
                 reduction);
}

at::Tensor loss_autocast(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& target,
                         const OptionalTensor& bias, int64_t ignore_index, double label_smoothing, double z_loss,
                         c10::string_view reduction) {
  return in_lower_precision(loss_op(), input, weight, target, bias, ignore_index, label_smoothing, z_loss, reduction);
}

LossAndLogits both_autocast(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& target,
                            const OptionalTensor& bias, int64_t ignore_index, double label_smoothing, double z_loss,
                            c10::string_view reduction) {
  static const auto kHandle = find_op<decltype(both_plain)>(kBoth);
  return in_lower_precision(kHandle, input, weight, target, bias, ignore_index, label_smoothing, z_loss, reduction);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "linear_cross_entropy(Tensor input, Tensor weight, Tensor target, Tensor? bias=None, int ignore_index=-100, "
      "float label_smoothing=0.0, float z_loss=0.0, str reduction='mean') -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "linear_cross_entropy_and_logits(Tensor input, Tensor weight, Tensor target, Tensor? bias=None, "
      "int ignore_index=-100, float label_smoothing=0.0, float z_loss=0.0, str reduction='mean') -> (Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("linear_cross_entropy", loss_plain);
  m.impl("linear_cross_entropy_and_logits", both_plain);
}
TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("linear_cross_entropy", loss_autograd);
  m.impl("linear_cross_entropy_and_logits", both_autograd);
}
TORCH_LIBRARY_IMPL(actnn, AutocastCPU, m) {
  m.impl("linear_cross_entropy", loss_autocast);
  m.impl("linear_cross_entropy_and_logits", both_autocast);
}
TORCH_LIBRARY_IMPL(actnn, AutocastCUDA, m) {
  m.impl("linear_cross_entropy", loss_autocast);
  m.impl("linear_cross_entropy_and_logits", both_autocast);
}

at::Tensor linear_cross_entropy(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& target,
                                const OptionalTensor& bias, const LinearCrossEntropyOptions& options) {
  return loss_op().call(input, weight, target, bias, options.ignore_index, options.label_smoothing, options.z_loss,
                        options.reduction == LossReduction::kMean ? kMean : kSum);
}

}  // namespace actnn
