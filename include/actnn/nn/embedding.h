#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <ostream>

namespace actnn::nn {

using EmbeddingOptions = torch::nn::EmbeddingOptions;

/// `torch::nn::Embedding` that keeps its indices in the smallest integer type that holds them for backward. `indices`:
/// int32 or int64 of any shape. A float32, float16 or bfloat16 table is compressed so, others run torch's operation.
/// Result and gradient are torch's. The parameter, its name, its initialization and the archives are those of torch's
/// layer.
class EmbeddingImpl : public torch::nn::Cloneable<EmbeddingImpl> {
 public:
  using TorchLayer = torch::nn::EmbeddingImpl;

  EmbeddingImpl(int64_t num_embeddings, int64_t embedding_dim)
      : EmbeddingImpl(EmbeddingOptions(num_embeddings, embedding_dim)) {}
  explicit EmbeddingImpl(const EmbeddingOptions& options_);

  /// A layer over the very tensor of `source`: its parameter (not a copy), options and training mode.
  explicit EmbeddingImpl(const TorchLayer& source);

  at::Tensor forward(const at::Tensor& indices);

  void reset() override;
  void reset_parameters();
  void pretty_print(std::ostream& stream) const override;

  EmbeddingOptions options;
  at::Tensor weight;  ///< [num_embeddings, embedding_dim]
};
TORCH_MODULE(Embedding);

}  // namespace actnn::nn
