#include "actnn/autograd/softmax.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/softmax.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "src/autograd/arguments.h"
#include "src/autograd/autocast.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/rounding_names.h"

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Softmax {
  static constexpr const char* kSoftmaxName = "actnn::softmax";

  static at::Tensor value(const at::Tensor& input, int64_t dim) { return at::softmax(input, dim); }

  /// Two copies: y1 * (g - sum(g * y2)) is unbiased, because y1 and y2 are independent.
  static variable_list save(AutogradContext* ctx, const at::Tensor& output, const Quantization& quantization,
                            const OptionalTensor& rng_state) {
    const at::Tensor first = save_packed(ctx, output, quantization, rng_state);
    return {first,
            quantization.rounding == Rounding::kNearest ? first : save_packed(ctx, output, quantization, rng_state)};
  }

  static at::Tensor gradient(AutogradContext* ctx, const at::Tensor& grad, int64_t dim) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor sum = grad.mul(unpack_saved(ctx, saved[1])).sum(dim, /*keepdim=*/true);
    return unpack_saved(ctx, saved[0]).mul(grad.sub(sum));
  }
};

struct LogSoftmax {
  static constexpr const char* kSoftmaxName = "actnn::log_softmax";

  static at::Tensor value(const at::Tensor& input, int64_t dim) { return at::log_softmax(input, dim); }

  static variable_list save(AutogradContext* ctx, const at::Tensor& output, const Quantization& quantization,
                            const OptionalTensor& rng_state) {
    return {save_packed(ctx, output.exp(), quantization, rng_state)};
  }

  static at::Tensor gradient(AutogradContext* ctx, const at::Tensor& grad, int64_t dim) {
    const at::Tensor probabilities = unpack_saved(ctx, ctx->get_saved_variables()[0]);
    return grad.sub(probabilities.mul(grad.sum(dim, /*keepdim=*/true)));
  }
};

template <class Kind>
class Normalized : public torch::autograd::Function<Normalized<Kind>> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, int64_t dim,
                            const Quantization& quantization, const OptionalTensor& rng_state) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor output = Kind::value(input, dim);
    ctx->save_for_backward(Kind::save(ctx, output, quantization, rng_state));
    ctx->saved_data["dim"] = dim;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    refuse_double_backward(Kind::kSoftmaxName);
    return {Kind::gradient(ctx, grad_outputs[0], ctx->saved_data["dim"].toInt()), {}, {}, {}};
  }
};

template <class Kind>
at::Tensor kernel(const at::Tensor& input, int64_t dim, int64_t bits, int64_t group_size, c10::string_view rounding,
                  const OptionalTensor& rng_state) {
  check_floating(Kind::kSoftmaxName, "input", input);
  const int64_t rank = std::max<int64_t>(input.dim(), 1);
  TORCH_CHECK_INDEX(dim >= -rank && dim < rank, Kind::kSoftmaxName, ": dim must be in ", -rank, "..", rank - 1,
                    " for an input of shape ", input.sym_sizes(), ", got ", dim);
  const Quantization quantization =
      check_quantization(Kind::kSoftmaxName, input, bits, group_size, rounding, rng_state);
  if (at::GradMode::is_enabled() && wants_grad(input)) {
    return Normalized<Kind>::apply(input, dim, quantization, rng_state);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return Kind::value(input, dim);
}

template <class Kind>
const auto& op() {
  static const auto kHandle = find_op<decltype(kernel<Kind>)>(Kind::kSoftmaxName);
  return kHandle;
}

template <class Kind>
at::Tensor autocast(const at::Tensor& input, int64_t dim, int64_t bits, int64_t group_size, c10::string_view rounding,
                    const OptionalTensor& rng_state) {
  const FullPrecision full(input.device().type());
  return op<Kind>().call(full.cast(input), dim, bits, group_size, rounding, rng_state);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "softmax(Tensor input, int dim, int bits=4, int group_size=256, str rounding='dithered', "
      "Tensor(a!)? rng_state=None) -> Tensor",
      tags);
  m.def(
      "log_softmax(Tensor input, int dim, int bits=4, int group_size=256, str rounding='dithered', "
      "Tensor(a!)? rng_state=None) -> Tensor",
      tags);
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("softmax", kernel<Softmax>);
  m.impl("log_softmax", kernel<LogSoftmax>);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("softmax", kernel<Softmax>);
  m.impl("log_softmax", kernel<LogSoftmax>);
}

TORCH_LIBRARY_IMPL(actnn, AutocastCUDA, m) {
  m.impl("softmax", autocast<Softmax>);
  m.impl("log_softmax", autocast<LogSoftmax>);
}

at::Tensor softmax(const at::Tensor& input, int64_t dim, const Quantization& quantization,
                   const OptionalTensor& rng_state) {
  return op<Softmax>().call(input, dim, quantization.bits, quantization.group_size, name_of(quantization.rounding),
                            rng_state);
}

at::Tensor log_softmax(const at::Tensor& input, int64_t dim, const Quantization& quantization,
                       const OptionalTensor& rng_state) {
  return op<LogSoftmax>().call(input, dim, quantization.bits, quantization.group_size, name_of(quantization.rounding),
                               rng_state);
}

}  // namespace actnn
