#include "actnn/autograd/embedding.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/embedding_backward.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "src/autograd/saved_activation.h"
#include "src/autograd/small_integers.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"

namespace actnn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kEmbeddingName = "actnn::embedding";

class Embedding : public torch::autograd::Function<Embedding> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& weight, const at::Tensor& indices,
                            const c10::SymInt& padding_idx, bool scale_grad_by_freq, bool sparse) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    // First, because it finds indices that are out of range.
    at::Tensor output = at::embedding_symint(weight, indices, padding_idx, scale_grad_by_freq, sparse);
    ctx->save_for_backward({indices.to(smallest_integer_type(weight.sym_size(0)))});
    ctx->saved_data["index_dtype"] = indices.scalar_type();
    ctx->saved_data["num_embeddings"] = weight.sym_size(0);
    ctx->saved_data["padding_idx"] = padding_idx;
    ctx->saved_data["scale_grad_by_freq"] = scale_grad_by_freq;
    ctx->saved_data["sparse"] = sparse;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    auto& data = ctx->saved_data;
    const at::Tensor indices = ctx->get_saved_variables()[0].to(data["index_dtype"].toScalarType());
    const at::Tensor& grad = grad_outputs[0];
    if (indices.sym_numel() == 0 &&
        !data["sparse"].toBool()) {  // torch's kernel fails on CUDA if it scales by frequency
      return {at::zeros_symint({data["num_embeddings"].toSymInt(), grad.sym_size(-1)}, grad.options()), {}, {}, {}, {}};
    }
    return {
        at::embedding_backward_symint(grad, indices, data["num_embeddings"].toSymInt(), data["padding_idx"].toSymInt(),
                                      data["scale_grad_by_freq"].toBool(), data["sparse"].toBool()),
        {},
        {},
        {},
        {}};
  }
};

// The dispatcher passes symbolic integers by value. NOLINTNEXTLINE(performance-unnecessary-value-param)
at::Tensor embedding_kernel(const at::Tensor& weight, const at::Tensor& indices, c10::SymInt padding_idx,
                            bool scale_grad_by_freq, bool sparse) {
  check_floating(kEmbeddingName, "weight", weight);
  TORCH_CHECK_VALUE(weight.dim() == 2, kEmbeddingName,
                    ": weight must have shape [num_embeddings, embedding_dim], got shape ", weight.sym_sizes());
  TORCH_CHECK_TYPE(indices.scalar_type() == at::kLong || indices.scalar_type() == at::kInt, kEmbeddingName,
                   ": indices must be int32 or int64, got ", indices.scalar_type());
  TORCH_CHECK_VALUE(indices.device() == weight.device(), kEmbeddingName, ": indices must be on the weight's device ",
                    weight.device(), ", got ", indices.device());
  TORCH_CHECK_VALUE(padding_idx >= -1 && padding_idx < weight.sym_size(0), kEmbeddingName,
                    ": padding_idx must be -1 or below num_embeddings = ", weight.sym_size(0), ", got ", padding_idx);
  if (at::GradMode::is_enabled() && wants_grad(weight)) {
    return Embedding::apply(weight, indices, padding_idx, scale_grad_by_freq, sparse);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return at::embedding_symint(weight, indices, padding_idx, scale_grad_by_freq, sparse);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "embedding(Tensor weight, Tensor indices, SymInt padding_idx=-1, bool scale_grad_by_freq=False, "
      "bool sparse=False) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) { m.impl("embedding", embedding_kernel); }
TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("embedding", embedding_kernel); }

at::Tensor embedding(const at::Tensor& weight, const at::Tensor& indices, int64_t padding_idx, bool scale_grad_by_freq,
                     bool sparse) {
  static const auto kHandle = find_op<decltype(embedding_kernel)>(kEmbeddingName);
  return kHandle.call(weight, indices, padding_idx, scale_grad_by_freq, sparse);
}

}  // namespace actnn
