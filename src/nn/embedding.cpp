#include "actnn/nn/embedding.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/embedding_renorm.h>
#include <ATen/ops/empty.h>
#include <torch/nn/init.h>

#include "actnn/autograd/embedding.h"
#include "src/nn/parameters.h"

namespace actnn::nn {

EmbeddingImpl::EmbeddingImpl(const EmbeddingOptions& options_) : options(options_) { EmbeddingImpl::reset(); }

EmbeddingImpl::EmbeddingImpl(const TorchLayer& source) : options(source.options), weight(source.weight) {
  adopt_parameters(*this, source, {"weight"});
  train(source.is_training());
}

void EmbeddingImpl::reset() {
  const int64_t rows = options.num_embeddings();
  if (const auto padding = options.padding_idx()) {
    TORCH_CHECK_VALUE(*padding >= -rows && *padding < rows, "actnn::nn::Embedding: padding_idx must be in ", -rows,
                      "..", rows - 1, " for num_embeddings = ", rows, ", got ", *padding);
    options.padding_idx(*padding < 0 ? rows + *padding : *padding);
  }
  if (options._weight().defined()) {
    TORCH_CHECK_VALUE(options._weight().sizes() == at::IntArrayRef({rows, options.embedding_dim()}),
                      "actnn::nn::Embedding: _weight must have shape [num_embeddings, embedding_dim] = [", rows, ", ",
                      options.embedding_dim(), "], got shape ", options._weight().sizes());
    weight = register_parameter("weight", options._weight());
  } else {
    weight = register_parameter("weight", at::empty({rows, options.embedding_dim()}));
    reset_parameters();
  }
}

void EmbeddingImpl::reset_parameters() {
  torch::nn::init::normal_(weight);
  if (options.padding_idx()) {
    const at::NoGradGuard no_grad;
    weight[*options.padding_idx()].fill_(0);
  }
}

at::Tensor EmbeddingImpl::forward(const at::Tensor& indices) {
  if (options.max_norm()) {
    const at::NoGradGuard no_grad;
    // Torch rounds them to float32, too.
    at::embedding_renorm_(weight, indices.contiguous(), static_cast<float>(*options.max_norm()),
                          static_cast<float>(options.norm_type()));
  }
  const int64_t padding_idx = options.padding_idx().value_or(-1);
  return is_compressible(weight.scalar_type())
             ? actnn::embedding(weight, indices, padding_idx, options.scale_grad_by_freq(), options.sparse())
             : at::embedding(weight, indices, padding_idx, options.scale_grad_by_freq(), options.sparse());
}

void EmbeddingImpl::pretty_print(std::ostream& stream) const {
  stream << "actnn::nn::Embedding(num_embeddings=" << options.num_embeddings()
         << ", embedding_dim=" << options.embedding_dim();
  if (options.padding_idx()) {
    stream << ", padding_idx=" << *options.padding_idx();
  }
  if (options.max_norm()) {
    stream << ", max_norm=" << *options.max_norm();
  }
  if (options.norm_type() != 2) {
    stream << ", norm_type=" << options.norm_type();
  }
  stream << (options.scale_grad_by_freq() ? ", scale_grad_by_freq=true" : "")
         << (options.sparse() ? ", sparse=true" : "") << ')';
}

}  // namespace actnn::nn
