#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/hardswish.h>
#include <ATen/ops/hardswish_backward.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>

#include "actnn/autograd/activation.h"
#include "src/autograd/arguments.h"
#include "src/autograd/dispatch.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/checks.h"

// What is saved is the derivative, a quantized copy of it.

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// A smooth function of one number.
struct Activation {
  const char* op;
  at::Tensor (*value)(const at::Tensor& input);
  at::Tensor& (*overwrite)(at::Tensor& input);  ///< or none
  /// Torch's backward for a gradient of ones. `output` is none before an input is overwritten.
  at::Tensor (*derivative)(const at::Tensor& ones, const at::Tensor& input, const at::Tensor& output);
};

enum Kind : int64_t { kGelu, kGeluTanh, kSilu, kHardswish, kSigmoid, kTanh };

constexpr std::array kActivations{
    Activation{"actnn::gelu", [](const at::Tensor& input) { return at::gelu(input); }, nullptr,
               [](const at::Tensor& ones, const at::Tensor& input, const at::Tensor& /*output*/) {
                 return at::gelu_backward(ones, input);
               }},
    Activation{"actnn::gelu", [](const at::Tensor& input) { return at::gelu(input, "tanh"); }, nullptr,
               [](const at::Tensor& ones, const at::Tensor& input, const at::Tensor& /*output*/) {
                 return at::gelu_backward(ones, input, "tanh");
               }},
    Activation{"actnn::silu", at::silu, at::silu_,
               [](const at::Tensor& ones, const at::Tensor& input, const at::Tensor& /*output*/) {
                 return at::silu_backward(ones, input);
               }},
    Activation{"actnn::hardswish", at::hardswish, at::hardswish_,
               [](const at::Tensor& ones, const at::Tensor& input, const at::Tensor& /*output*/) {
                 return at::hardswish_backward(ones, input);
               }},
    Activation{"actnn::sigmoid", at::sigmoid, nullptr,
               [](const at::Tensor& ones, const at::Tensor& /*input*/, const at::Tensor& output) {
                 return at::sigmoid_backward(ones, output);
               }},
    Activation{"actnn::tanh", at::tanh, nullptr,
               [](const at::Tensor& ones, const at::Tensor& /*input*/, const at::Tensor& output) {
                 return at::tanh_backward(ones, output);
               }},
};

constexpr const Activation& activation_of(int64_t kind) { return kActivations.at(static_cast<size_t>(kind)); }

void save_derivative(AutogradContext* ctx, int64_t kind, const at::Tensor& input, const at::Tensor& output,
                     const Quantization& quantization, const OptionalTensor& rng_state) {
  const at::Tensor derivative = activation_of(kind).derivative(at::ones_like(input), input, output);
  ctx->save_for_backward({pack_activation(ctx, derivative, quantization, rng_state)});
  ctx->saved_data["kind"] = kind;
}

at::Tensor scaled_gradient(AutogradContext* ctx, const at::Tensor& grad) {
  refuse_double_backward(activation_of(ctx->saved_data["kind"].toInt()).op);
  const variable_list saved = ctx->get_saved_variables();
  return grad.mul(unpack_activation(ctx, saved[0]));
}

class Smooth : public torch::autograd::Function<Smooth> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, int64_t kind,
                            const Quantization& quantization, const OptionalTensor& rng_state) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor output = activation_of(kind).value(input);
    save_derivative(ctx, kind, input, output, quantization, rng_state);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    return {scaled_gradient(ctx, grad_outputs[0]), {}, {}, {}};
  }
};

class SmoothInPlace : public torch::autograd::Function<SmoothInPlace> {
 public:
  static at::Tensor forward(AutogradContext* ctx, at::Tensor input, int64_t kind, const Quantization& quantization,
                            const OptionalTensor& rng_state) {
    const at::AutoDispatchBelowAutograd guard;
    save_derivative(ctx, kind, input, {}, quantization, rng_state);
    activation_of(kind).overwrite(input);
    ctx->mark_dirty({input});
    return input;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    return {scaled_gradient(ctx, grad_outputs[0]), {}, {}, {}};
  }
};

Quantization check_arguments(int64_t kind, const at::Tensor& input, int64_t bits, int64_t group_size, bool stochastic,
                             const OptionalTensor& rng_state) {
  check_floating(activation_of(kind).op, "input", input);
  return check_quantization(activation_of(kind).op, input, bits, group_size, stochastic, rng_state);
}

at::Tensor smooth(int64_t kind, const at::Tensor& input, int64_t bits, int64_t group_size, bool stochastic,
                  const OptionalTensor& rng_state) {
  const Quantization quantization = check_arguments(kind, input, bits, group_size, stochastic, rng_state);
  if (at::GradMode::is_enabled() && wants_grad(input)) {
    return Smooth::apply(input, kind, quantization, rng_state);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return activation_of(kind).value(input);
}

template <Kind kKind>
at::Tensor kernel(const at::Tensor& input, int64_t bits, int64_t group_size, bool stochastic,
                  const OptionalTensor& rng_state) {
  return smooth(kKind, input, bits, group_size, stochastic, rng_state);
}

at::Tensor gelu_kernel(const at::Tensor& input, c10::string_view approximate, int64_t bits, int64_t group_size,
                       bool stochastic, const OptionalTensor& rng_state) {
  TORCH_CHECK_VALUE(approximate == "none" || approximate == "tanh",
                    "actnn::gelu: approximate must be 'none' or 'tanh', got '", approximate, "'");
  return smooth(approximate == "none" ? kGelu : kGeluTanh, input, bits, group_size, stochastic, rng_state);
}

template <Kind kKind>
at::Tensor& in_place_autograd(at::Tensor& input, int64_t bits, int64_t group_size, bool stochastic,
                              const OptionalTensor& rng_state) {
  const Quantization quantization = check_arguments(kKind, input, bits, group_size, stochastic, rng_state);
  if (at::GradMode::is_enabled() && wants_grad(input)) {
    SmoothInPlace::apply(input, kKind, quantization, rng_state);
    return input;
  }
  return activation_of(kKind).overwrite(input);
}

template <Kind kKind>
at::Tensor& in_place_plain(at::Tensor& input, int64_t bits, int64_t group_size, bool stochastic,
                           const OptionalTensor& rng_state) {
  check_arguments(kKind, input, bits, group_size, stochastic, rng_state);
  return activation_of(kKind).overwrite(input);
}

using SmoothActivationSignature = decltype(kernel<kSilu>);
using InPlaceSignature = decltype(in_place_plain<kSilu>);

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "gelu(Tensor input, str approximate='none', int bits=4, int group_size=256, bool stochastic=True, "
      "Tensor(a!)? rng_state=None) -> Tensor",
      tags);
  m.def(
      "silu(Tensor input, int bits=4, int group_size=256, bool stochastic=True, Tensor(a!)? rng_state=None) -> Tensor",
      tags);
  m.def(
      "silu_(Tensor(a!) input, int bits=4, int group_size=256, bool stochastic=True, Tensor(b!)? rng_state=None) "
      "-> Tensor(a!)",
      tags);
  m.def(
      "hardswish(Tensor input, int bits=4, int group_size=256, bool stochastic=True, Tensor(a!)? rng_state=None) "
      "-> Tensor",
      tags);
  m.def(
      "hardswish_(Tensor(a!) input, int bits=4, int group_size=256, bool stochastic=True, Tensor(b!)? rng_state=None) "
      "-> Tensor(a!)",
      tags);
  m.def(
      "sigmoid(Tensor input, int bits=4, int group_size=256, bool stochastic=True, Tensor(a!)? rng_state=None) "
      "-> Tensor",
      tags);
  m.def(
      "tanh(Tensor input, int bits=4, int group_size=256, bool stochastic=True, Tensor(a!)? rng_state=None) -> Tensor",
      tags);
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("gelu", gelu_kernel);
  m.impl("silu", kernel<kSilu>);
  m.impl("silu_", in_place_plain<kSilu>);
  m.impl("hardswish", kernel<kHardswish>);
  m.impl("hardswish_", in_place_plain<kHardswish>);
  m.impl("sigmoid", kernel<kSigmoid>);
  m.impl("tanh", kernel<kTanh>);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("gelu", gelu_kernel);
  m.impl("silu", kernel<kSilu>);
  m.impl("silu_", in_place_autograd<kSilu>);
  m.impl("hardswish", kernel<kHardswish>);
  m.impl("hardswish_", in_place_autograd<kHardswish>);
  m.impl("sigmoid", kernel<kSigmoid>);
  m.impl("tanh", kernel<kTanh>);
}

at::Tensor gelu(const at::Tensor& input, std::string_view approximate, const Quantization& q,
                const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<decltype(gelu_kernel)>("actnn::gelu");
  return kHandle.call(input, approximate, q.bits, q.group_size, q.stochastic, rng_state);
}

at::Tensor silu(const at::Tensor& input, const Quantization& q, const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<SmoothActivationSignature>("actnn::silu");
  return kHandle.call(input, q.bits, q.group_size, q.stochastic, rng_state);
}

at::Tensor& silu_(at::Tensor& input, const Quantization& q, const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<InPlaceSignature>("actnn::silu_");
  return kHandle.call(input, q.bits, q.group_size, q.stochastic, rng_state);
}

at::Tensor hardswish(const at::Tensor& input, const Quantization& q, const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<SmoothActivationSignature>("actnn::hardswish");
  return kHandle.call(input, q.bits, q.group_size, q.stochastic, rng_state);
}

at::Tensor& hardswish_(at::Tensor& input, const Quantization& q, const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<InPlaceSignature>("actnn::hardswish_");
  return kHandle.call(input, q.bits, q.group_size, q.stochastic, rng_state);
}

at::Tensor sigmoid(const at::Tensor& input, const Quantization& q, const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<SmoothActivationSignature>("actnn::sigmoid");
  return kHandle.call(input, q.bits, q.group_size, q.stochastic, rng_state);
}

at::Tensor tanh(const at::Tensor& input, const Quantization& q, const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<SmoothActivationSignature>("actnn::tanh");
  return kHandle.call(input, q.bits, q.group_size, q.stochastic, rng_state);
}

}  // namespace actnn
