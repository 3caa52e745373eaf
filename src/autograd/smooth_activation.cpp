#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/hardswish.h>
#include <ATen/ops/silu.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <optional>

#include "actnn/autograd/activation.h"
#include "actnn/core/activation.h"
#include "src/autograd/arguments.h"
#include "src/autograd/saved_activation.h"
#include "src/ops/activation_functions.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/rounding_names.h"
#include "src/ops/shared_copy.h"

// GELU and SiLU save a copy of their input, from which backward computes the derivative, and those behind them the copy
// of the output: one copy instead of two, and a finer one. The others save a copy of their derivative: those of sigmoid
// and tanh are as smooth as it, and hardswish's jumps at -3 and 3, where a copy of the input is on the wrong side.

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// An op of a smooth function of one number.
struct SmoothOp {
  const char* name;
  ActivationKind kind;
  at::Tensor& (*overwrite)(at::Tensor& input) = nullptr;  ///< or none
};

enum Op : int64_t { kGelu, kGeluTanh, kSilu, kHardswish, kSigmoid, kTanh };

constexpr std::array kOps{SmoothOp{"actnn::gelu", ActivationKind::kGELU},
                          SmoothOp{"actnn::gelu", ActivationKind::kGELUTanh},
                          SmoothOp{"actnn::silu", ActivationKind::kSiLU, at::silu_},
                          SmoothOp{"actnn::hardswish", ActivationKind::kHardswish, at::hardswish_},
                          SmoothOp{"actnn::sigmoid", ActivationKind::kSigmoid},
                          SmoothOp{"actnn::tanh", ActivationKind::kTanh}};

constexpr const SmoothOp& op_of(int64_t number) { return kOps.at(static_cast<size_t>(number)); }

constexpr bool keeps_input(ActivationKind kind) {
  return kind == ActivationKind::kGELU || kind == ActivationKind::kGELUTanh || kind == ActivationKind::kSiLU;
}

/// Where the channels probably are: behind linear layers in the last dimension, behind convolutions in the second.
std::optional<Channels> channels_of(const at::Tensor& input) {
  const bool is_of_rows = input.dim() == 2 || input.dim() == 3;
  return is_of_rows ? std::optional(Channels::kLast) : innermost_channels(input);
}

/// Returns what it saves.
at::Tensor save(AutogradContext* ctx, int64_t op, const at::Tensor& input, const at::Tensor& output,
                Quantization quantization, const OptionalTensor& rng_state) {
  const ActivationKind kind = op_of(op).kind;
  at::Tensor packed;
  if (keeps_input(kind)) {
    quantization.bits = smooth_copy_bits(quantization.bits);
    packed = save_packed(ctx, input, quantization, rng_state, channels_of(input));
  } else {
    packed = save_packed(ctx, smooth_derivative(kind, input, output), quantization, rng_state);
  }
  ctx->save_for_backward({packed});
  ctx->saved_data["op"] = op;
  return packed;
}

std::optional<InputCopy> copy_for_others(AutogradContext* ctx, int64_t op, const at::Tensor& packed,
                                         const at::Tensor& output) {
  const ActivationKind kind = op_of(op).kind;
  return keeps_input(kind) ? saved_input_copy(ctx, packed, kind, output) : std::nullopt;
}

at::Tensor input_gradient(AutogradContext* ctx, const at::Tensor& grad) {
  const auto& [name, kind, overwrite] = op_of(ctx->saved_data["op"].toInt());
  refuse_double_backward(name);
  const at::Tensor copy = unpack_saved(ctx, ctx->get_saved_variables()[0]);
  return keeps_input(kind) ? smooth_gradient(kind, grad, copy, {}) : grad.mul(copy);
}

class Smooth : public torch::autograd::Function<Smooth> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, int64_t op, const Quantization& quantization,
                            const OptionalTensor& rng_state) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor output = activate(op_of(op).kind, input);
    const at::Tensor packed = save(ctx, op, input, output, quantization, rng_state);
    if (const auto copy = copy_for_others(ctx, op, packed, output)) {
      share_copy(output, *copy);
    }
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    return {input_gradient(ctx, grad_outputs[0]), {}, {}, {}};
  }
};

class SmoothInPlace : public torch::autograd::Function<SmoothInPlace> {
 public:
  /// `copy`: for those who read the result, once autograd is done with it.
  static at::Tensor forward(AutogradContext* ctx, at::Tensor input, int64_t op, const Quantization& quantization,
                            const OptionalTensor& rng_state, std::optional<InputCopy>& copy) {
    const at::AutoDispatchBelowAutograd guard;
    copy = copy_for_others(ctx, op, save(ctx, op, input, {}, quantization, rng_state), input);
    op_of(op).overwrite(input);
    ctx->mark_dirty({input});
    return input;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    return {input_gradient(ctx, grad_outputs[0]), {}, {}, {}, {}};
  }
};

Quantization check_arguments(int64_t op, const at::Tensor& input, int64_t bits, int64_t group_size,
                             c10::string_view rounding, const OptionalTensor& rng_state) {
  check_floating(op_of(op).name, "input", input);
  return check_quantization(op_of(op).name, input, bits, group_size, rounding, rng_state);
}

at::Tensor smooth(int64_t op, const at::Tensor& input, int64_t bits, int64_t group_size, c10::string_view rounding,
                  const OptionalTensor& rng_state) {
  const Quantization quantization = check_arguments(op, input, bits, group_size, rounding, rng_state);
  if (at::GradMode::is_enabled() && wants_grad(input)) {
    return Smooth::apply(input, op, quantization, rng_state);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return activate(op_of(op).kind, input);
}

template <Op kOp>
at::Tensor kernel(const at::Tensor& input, int64_t bits, int64_t group_size, c10::string_view rounding,
                  const OptionalTensor& rng_state) {
  return smooth(kOp, input, bits, group_size, rounding, rng_state);
}

at::Tensor gelu_kernel(const at::Tensor& input, c10::string_view approximate, int64_t bits, int64_t group_size,
                       c10::string_view rounding, const OptionalTensor& rng_state) {
  TORCH_CHECK_VALUE(approximate == "none" || approximate == "tanh",
                    "actnn::gelu: approximate must be 'none' or 'tanh', got '", approximate, "'");
  return smooth(approximate == "none" ? kGelu : kGeluTanh, input, bits, group_size, rounding, rng_state);
}

template <Op kOp>
at::Tensor& in_place_autograd(at::Tensor& input, int64_t bits, int64_t group_size, c10::string_view rounding,
                              const OptionalTensor& rng_state) {
  const Quantization quantization = check_arguments(kOp, input, bits, group_size, rounding, rng_state);
  if (at::GradMode::is_enabled() && wants_grad(input)) {
    std::optional<InputCopy> copy;
    SmoothInPlace::apply(input, kOp, quantization, rng_state, copy);
    if (copy) {
      share_copy(input, *copy);
    }
    return input;
  }
  return op_of(kOp).overwrite(input);
}

template <Op kOp>
at::Tensor& in_place_plain(at::Tensor& input, int64_t bits, int64_t group_size, c10::string_view rounding,
                           const OptionalTensor& rng_state) {
  check_arguments(kOp, input, bits, group_size, rounding, rng_state);
  return op_of(kOp).overwrite(input);
}

using SmoothActivationSignature = decltype(kernel<kSilu>);
using InPlaceSignature = decltype(in_place_plain<kSilu>);

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "gelu(Tensor input, str approximate='none', int bits=4, int group_size=256, str rounding='dithered', "
      "Tensor(a!)? rng_state=None) -> Tensor",
      tags);
  m.def(
      "silu(Tensor input, int bits=4, int group_size=256, str rounding='dithered', Tensor(a!)? rng_state=None) -> "
      "Tensor",
      tags);
  m.def(
      "silu_(Tensor(a!) input, int bits=4, int group_size=256, str rounding='dithered', Tensor(b!)? rng_state=None) "
      "-> Tensor(a!)",
      tags);
  m.def(
      "hardswish(Tensor input, int bits=4, int group_size=256, str rounding='dithered', Tensor(a!)? rng_state=None) "
      "-> Tensor",
      tags);
  m.def(
      "hardswish_(Tensor(a!) input, int bits=4, int group_size=256, str rounding='dithered', Tensor(b!)? "
      "rng_state=None) "
      "-> Tensor(a!)",
      tags);
  m.def(
      "sigmoid(Tensor input, int bits=4, int group_size=256, str rounding='dithered', Tensor(a!)? rng_state=None) "
      "-> Tensor",
      tags);
  m.def(
      "tanh(Tensor input, int bits=4, int group_size=256, str rounding='dithered', Tensor(a!)? rng_state=None) -> "
      "Tensor",
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
  return kHandle.call(input, approximate, q.bits, q.group_size, name_of(q.rounding), rng_state);
}

at::Tensor silu(const at::Tensor& input, const Quantization& q, const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<SmoothActivationSignature>("actnn::silu");
  return kHandle.call(input, q.bits, q.group_size, name_of(q.rounding), rng_state);
}

at::Tensor& silu_(at::Tensor& input, const Quantization& q, const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<InPlaceSignature>("actnn::silu_");
  return kHandle.call(input, q.bits, q.group_size, name_of(q.rounding), rng_state);
}

at::Tensor hardswish(const at::Tensor& input, const Quantization& q, const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<SmoothActivationSignature>("actnn::hardswish");
  return kHandle.call(input, q.bits, q.group_size, name_of(q.rounding), rng_state);
}

at::Tensor& hardswish_(at::Tensor& input, const Quantization& q, const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<InPlaceSignature>("actnn::hardswish_");
  return kHandle.call(input, q.bits, q.group_size, name_of(q.rounding), rng_state);
}

at::Tensor sigmoid(const at::Tensor& input, const Quantization& q, const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<SmoothActivationSignature>("actnn::sigmoid");
  return kHandle.call(input, q.bits, q.group_size, name_of(q.rounding), rng_state);
}

at::Tensor tanh(const at::Tensor& input, const Quantization& q, const OptionalTensor& rng_state) {
  static const auto kHandle = find_op<SmoothActivationSignature>("actnn::tanh");
  return kHandle.call(input, q.bits, q.group_size, name_of(q.rounding), rng_state);
}

}  // namespace actnn
