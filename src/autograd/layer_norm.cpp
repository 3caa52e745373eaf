#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <ATen/ops/rms_norm.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <limits>
#include <numeric>
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

// Normalizations over the last dimensions.

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kLayerNorm = "actnn::layer_norm";
constexpr const char* kRmsNorm = "actnn::rms_norm";

class LayerNorm : public torch::autograd::Function<LayerNorm> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const OptionalTensor& weight,
                            const OptionalTensor& bias, c10::SymIntArrayRef normalized_shape, double eps,
                            const Quantization& quantization, const OptionalTensor& rng_state) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, mean, rstd] = at::native_layer_norm_symint(input, normalized_shape, weight, bias, eps);
    save_parameter_presence(ctx, weight.has_value(), bias.has_value());
    save_normalization(ctx, {input, weight.value_or(at::Tensor()), bias.value_or(at::Tensor()), rstd}, output,
                       quantization, rng_state,
                       [&] { return std::get<0>(at::native_layer_norm_symint(input, normalized_shape, {}, {}, eps)); });
    ctx->saved_data["normalized_shape"] = normalized_shape.vec();
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(kLayerNorm);
    const SavedNormalization saved = saved_normalization(ctx, grad_outputs[0]);
    auto [grad_input, grad_weight, grad_bias] = at::native_layer_norm_backward_symint(
        grad_outputs[0], saved.normalized, ctx->saved_data["normalized_shape"].toSymIntVector(), saved.zero_mean(),
        saved.unit_rstd(), saved.weight, saved.bias, saved.wanted);
    return {saved.wanted[0] ? grad_input.mul_(saved.rstd) : at::Tensor(), grad_weight, grad_bias, {}, {}, {}, {}};
  }
};

/// The last `count` dimensions.
std::vector<int64_t> last_dimensions(size_t count) {
  std::vector<int64_t> dimensions(count);
  std::iota(dimensions.begin(), dimensions.end(), -static_cast<int64_t>(count));
  return dimensions;
}

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const OptionalTensor& weight,
                            c10::SymIntArrayRef normalized_shape, std::optional<double> eps,
                            const Quantization& quantization, const OptionalTensor& rng_state) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor output = at::rms_norm_symint(input, normalized_shape, weight, eps);
    // Torch gives it on CUDA only.
    const at::Tensor norm = at::linalg_vector_norm(input, 2, last_dimensions(normalized_shape.size()),
                                                   /*keepdim=*/true, /*dtype=*/at::kFloat);
    const at::Tensor rstd = norm.square()
                                .div(c10::Scalar(element_count(normalized_shape.vec())))
                                .add(eps.value_or(std::numeric_limits<float>::epsilon()))
                                .rsqrt();
    save_parameter_presence(ctx, weight.has_value(), /*has_bias=*/false);
    save_normalization(ctx, {input, weight.value_or(at::Tensor()), /*bias=*/{}, rstd}, output, quantization, rng_state,
                       [&] { return normalize(input, normalized_shape, rstd, eps); });
    ctx->saved_data["normalized_shape"] = normalized_shape.vec();
    return output;
  }

  /// With g the gradient of x-hat: (g - x-hat * mean(g * x-hat)) / rms, computed in float32.
  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(kRmsNorm);
    const SavedNormalization saved = saved_normalization(ctx, grad_outputs[0]);
    const std::vector<c10::SymInt> normalized_shape = ctx->saved_data["normalized_shape"].toSymIntVector();
    const auto [wants_input, wants_weight, _] = saved.wanted;
    const at::Tensor grad = grad_outputs[0].to(at::kFloat);
    const at::Tensor normalized = saved.normalized.to(at::kFloat);
    at::Tensor grad_input;
    at::Tensor grad_weight;
    if (wants_weight) {
      grad_weight = grad.mul(normalized).sum_to_size_symint(normalized_shape).to(saved.weight.scalar_type());
    }
    if (wants_input) {
      const at::Tensor grad_normalized = saved.weight.defined() ? grad.mul(saved.weight) : grad;
      const at::Tensor mean =
          grad_normalized.mul(normalized).mean(last_dimensions(normalized_shape.size()), /*keepdim=*/true);
      grad_input = grad_normalized.sub(normalized.mul(mean)).mul(saved.rstd).to(saved.normalized.scalar_type());
    }
    return {grad_input, grad_weight, {}, {}, {}, {}};
  }

 private:
  /// x-hat in the input's dtype. CUDA has one kernel for it.
  static at::Tensor normalize(const at::Tensor& input, c10::SymIntArrayRef normalized_shape, const at::Tensor& rstd,
                              std::optional<double> eps) {
    return input.is_cuda() ? at::rms_norm_symint(input, normalized_shape, {}, eps)
                           : with_dtype(input.mul(rstd), input.scalar_type());
  }
};

void check_shapes(const char* op, const at::Tensor& input, c10::SymIntArrayRef normalized_shape,
                  const OptionalTensor& weight, const OptionalTensor& bias) {
  check_floating(op, "input", input);
  const c10::SymIntArrayRef size = input.sym_sizes();
  TORCH_CHECK_VALUE(!normalized_shape.empty(), op, ": normalized_shape must have at least 1 entry, got none");
  TORCH_CHECK_VALUE(
      size.size() >= normalized_shape.size() && size.slice(size.size() - normalized_shape.size()) == normalized_shape,
      op, ": input must have normalized_shape = ", normalized_shape, " as its last dimensions, got shape ", size);
  check_parameter(op, "weight", weight, "normalized_shape", normalized_shape, input);
  check_parameter(op, "bias", bias, "normalized_shape", normalized_shape, input);
}

at::Tensor layer_norm_kernel(const at::Tensor& input, c10::SymIntArrayRef normalized_shape,
                             const OptionalTensor& weight, const OptionalTensor& bias, double eps, int64_t bits,
                             int64_t group_size, c10::string_view rounding, const OptionalTensor& rng_state) {
  check_shapes(kLayerNorm, input, normalized_shape, weight, bias);
  const Quantization quantization = check_quantization(kLayerNorm, input, bits, group_size, rounding, rng_state);
  if (at::GradMode::is_enabled() && wants_gradients(input, weight, bias)) {
    return LayerNorm::apply(input, weight, bias, normalized_shape, eps, quantization, rng_state);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return std::get<0>(at::native_layer_norm_symint(input, normalized_shape, weight, bias, eps));
}

at::Tensor rms_norm_kernel(const at::Tensor& input, c10::SymIntArrayRef normalized_shape, const OptionalTensor& weight,
                           std::optional<double> eps, int64_t bits, int64_t group_size, c10::string_view rounding,
                           const OptionalTensor& rng_state) {
  check_shapes(kRmsNorm, input, normalized_shape, weight, std::nullopt);
  const Quantization quantization = check_quantization(kRmsNorm, input, bits, group_size, rounding, rng_state);
  if (at::GradMode::is_enabled() && wants_gradients(input, weight, std::nullopt)) {
    return RmsNorm::apply(input, weight, normalized_shape, eps, quantization, rng_state);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return at::rms_norm_symint(input, normalized_shape, weight, eps);
}

const auto& layer_norm_op() {
  static const auto kHandle = find_op<decltype(layer_norm_kernel)>(kLayerNorm);
  return kHandle;
}

at::Tensor layer_norm_autocast(const at::Tensor& input, c10::SymIntArrayRef normalized_shape,
                               const OptionalTensor& weight, const OptionalTensor& bias, double eps, int64_t bits,
                               int64_t group_size, c10::string_view rounding, const OptionalTensor& rng_state) {
  const FullPrecision full(input.device().type());
  return layer_norm_op().call(full.cast(input), normalized_shape, full.cast(weight), full.cast(bias), eps, bits,
                              group_size, rounding, rng_state);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None, float eps=1e-05, "
      "int bits=4, int group_size=256, str rounding='dithered', Tensor(a!)? rng_state=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, float? eps=None, "
      "int bits=4, int group_size=256, str rounding='dithered', Tensor(a!)? rng_state=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("layer_norm", layer_norm_kernel);
  m.impl("rms_norm", rms_norm_kernel);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("layer_norm", layer_norm_kernel);
  m.impl("rms_norm", rms_norm_kernel);
}

TORCH_LIBRARY_IMPL(actnn, AutocastCUDA, m) { m.impl("layer_norm", layer_norm_autocast); }

at::Tensor layer_norm(const at::Tensor& input, c10::IntArrayRef normalized_shape, const OptionalTensor& weight,
                      const OptionalTensor& bias, double eps, const Quantization& quantization,
                      const OptionalTensor& rng_state) {
  return layer_norm_op().call(input, c10::fromIntArrayRefSlow(normalized_shape), weight, bias, eps, quantization.bits,
                              quantization.group_size, name_of(quantization.rounding), rng_state);
}

at::Tensor rms_norm(const at::Tensor& input, c10::IntArrayRef normalized_shape, const OptionalTensor& weight,
                    std::optional<double> eps, const Quantization& quantization, const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<decltype(rms_norm_kernel)>(kRmsNorm);
  return kHandle.call(input, c10::fromIntArrayRefSlow(normalized_shape), weight, eps, quantization.bits,
                      quantization.group_size, name_of(quantization.rounding), rng_state);
}

}  // namespace actnn
