#include "src/nn/padding.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/pad.h>
#include <ATen/ops/reflection_pad1d_backward.h>
#include <ATen/ops/reflection_pad2d_backward.h>
#include <ATen/ops/reflection_pad3d_backward.h>
#include <ATen/ops/replication_pad1d_backward.h>
#include <ATen/ops/replication_pad2d_backward.h>
#include <ATen/ops/replication_pad3d_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <cstdint>
#include <variant>
#include <vector>

namespace actnn::nn {
namespace {

using Backward = at::Tensor (*)(const at::Tensor&, const at::Tensor&, at::IntArrayRef);
constexpr std::array<Backward, 3> kReflectBackward = {at::reflection_pad1d_backward, at::reflection_pad2d_backward,
                                                      at::reflection_pad3d_backward};
constexpr std::array<Backward, 3> kReplicateBackward = {at::replication_pad1d_backward, at::replication_pad2d_backward,
                                                        at::replication_pad3d_backward};

class ShapeOnlyPad : public torch::autograd::Function<ShapeOnlyPad> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const std::vector<int64_t>& amounts, bool reflect) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->saved_data["sizes"] = input.sizes().vec();
    context->saved_data["strides"] = input.strides().vec();
    context->saved_data["amounts"] = amounts;
    context->saved_data["reflect"] = reflect;
    return at::pad(input, amounts, reflect ? "reflect" : "replicate");
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const at::Tensor& gradient = gradients[0];
    const std::vector<int64_t> amounts = context->saved_data["amounts"].toIntVector();
    // Stands for the input: only its shape and layout are read.
    const at::Tensor input = at::empty_strided(context->saved_data["sizes"].toIntVector(),
                                               context->saved_data["strides"].toIntVector(), gradient.options());
    const auto& backwards = context->saved_data["reflect"].toBool() ? kReflectBackward : kReplicateBackward;
    return {backwards.at(amounts.size() / 2 - 1)(gradient, input, amounts), {}, {}};
  }
};

}  // namespace

at::Tensor pad(const at::Tensor& input, at::IntArrayRef amounts, const torch::nn::detail::conv_padding_mode_t& mode) {
  if (std::holds_alternative<torch::enumtype::kZeros>(mode)) {
    return at::pad(input, amounts, "constant");
  }
  if (std::holds_alternative<torch::enumtype::kCircular>(mode)) {
    return at::pad(input, amounts, "circular");
  }
  return ShapeOnlyPad::apply(input, amounts.vec(), std::holds_alternative<torch::enumtype::kReflect>(mode));
}

}  // namespace actnn::nn
