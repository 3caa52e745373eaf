#include "actnn/nn/embedding.h"

#include "tests/cpp/nn/layer_comparison.h"

namespace {

using actnn_test::bit_equal;
using TorchOptions = torch::nn::EmbeddingOptions;

TEST(Embedding, ResultAndGradientAreTorchs) {
  const at::Tensor indices = at::randint(0, 9, {4, 7}, at::kLong);
  for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16, at::kDouble}) {
    for (const TorchOptions& options :
         {TorchOptions(9, 5), TorchOptions(9, 5).padding_idx(3),
          TorchOptions(9, 5).padding_idx(-2).scale_grad_by_freq(true), TorchOptions(9, 5).sparse(true),
          TorchOptions(9, 5).max_norm(0.7).norm_type(1)}) {
      at::manual_seed(3);
      actnn::nn::Embedding ours(options);
      at::manual_seed(3);
      torch::nn::Embedding theirs(options);
      ASSERT_TRUE(bit_equal(ours->weight, theirs->weight));
      ours->to(dtype);
      theirs->to(dtype);
      if (options.max_norm() && dtype != at::kFloat && dtype != at::kDouble) {
        continue;  // torch has no such norm
      }
      const at::Tensor actual = ours->forward(indices);
      const at::Tensor expected = theirs->forward(indices);
      EXPECT_TRUE(bit_equal(actual, expected));
      EXPECT_TRUE(bit_equal(ours->weight, theirs->weight));
      const at::Tensor gradient = at::randn(expected.sizes()).to(dtype);
      actual.backward(gradient);
      expected.backward(gradient);
      EXPECT_TRUE(bit_equal(ours->weight.grad().to_dense(), theirs->weight.grad().to_dense()));
    }
  }
}

TEST(Embedding, TakesAGivenTable) {
  const at::Tensor table = at::randn({3, 2});
  const actnn::nn::Embedding layer(TorchOptions(3, 2)._weight(table));
  EXPECT_TRUE(bit_equal(layer->weight, table));
  EXPECT_THROW(actnn::nn::Embedding(TorchOptions(4, 2)._weight(table)), c10::ValueError);
  EXPECT_THROW(actnn::nn::Embedding(TorchOptions(4, 2).padding_idx(4)), c10::ValueError);
}

}  // namespace
