// What the C++ functions add to the ops, whose gradients tests/python covers: defaults, lists of one entry, unbatched
// inputs, 1-D pooling, and layers that return their input.
#include <ATen/TensorOperators.h>
#include <ATen/ops/adaptive_avg_pool1d.h>
#include <ATen/ops/avg_pool1d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "actnn/autograd/batch_norm.h"
#include "actnn/autograd/convolution.h"
#include "actnn/autograd/dropout.h"
#include "actnn/autograd/linear.h"
#include "actnn/autograd/linear_cross_entropy.h"
#include "actnn/autograd/pooling.h"
#include "actnn/autograd/relu.h"
#include "actnn/ops/random.h"

namespace actnn {
namespace {

TEST(Convolution, TakesUnbatchedInputsAndSingleEntries) {
  const at::Tensor x = at::randn({3, 8, 8});
  const at::Tensor weight = at::randn({4, 3, 3, 3}).requires_grad_();
  const at::Tensor y = actnn::convolution(x, weight, std::nullopt, {.padding = {1}});
  EXPECT_TRUE(y.equal(at::conv2d(x, weight, {}, 1, 1)));
  y.sum().backward();
  EXPECT_EQ(weight.grad().sizes(), weight.sizes());
}

TEST(Linear, GivesTheSameGradientForTheSameState) {
  const at::Tensor x = at::randn({16, 8});
  const at::Tensor weight = at::randn({4, 8}).requires_grad_();
  const auto gradient = [&](int64_t seed) {
    weight.mutable_grad() = at::Tensor();
    actnn::linear(x, weight, std::nullopt, {.bits = 1}, make_rng_state(seed)).sum().backward();
    return weight.grad().clone();
  };
  EXPECT_TRUE(gradient(1).equal(gradient(1)));
  EXPECT_FALSE(gradient(1).equal(gradient(2)));
}

TEST(Linear, RefusesDoubleBackward) {
  const at::Tensor x = at::randn({16, 8}).requires_grad_();
  const at::Tensor weight = at::randn({4, 8}).requires_grad_();
  const at::Tensor y = actnn::linear(x, weight, std::nullopt).sum();
  EXPECT_THROW(y.backward({}, /*retain_graph=*/true, /*create_graph=*/true), c10::Error);
  y.backward();
  EXPECT_TRUE(weight.grad().defined());
}

TEST(LinearCrossEntropy, IsThatOfTheLogits) {
  const at::Tensor x = at::randn({2, 100, 8}).requires_grad_();
  const at::Tensor weight = at::randn({30, 8}).requires_grad_();
  const at::Tensor bias = at::randn({30});
  const at::Tensor target = at::randint(30, {2, 100}, at::kLong);
  const at::Tensor logits = at::linear(x, weight, bias).view({-1, 30});
  const auto gradients = [&](const at::Tensor& loss) {
    x.mutable_grad() = at::Tensor();
    weight.mutable_grad() = at::Tensor();
    loss.backward();
    return std::pair(x.grad().clone(), weight.grad().clone());
  };
  const at::Tensor mean = linear_cross_entropy(x, weight, target, bias);
  const at::Tensor expected_mean = at::cross_entropy_loss(logits, target.view(-1));
  EXPECT_TRUE(mean.allclose(expected_mean));
  const auto [of_x, of_weight] = gradients(mean);
  const auto [expected_of_x, expected_of_weight] = gradients(expected_mean);
  EXPECT_TRUE(of_x.allclose(expected_of_x, 1e-4, 1e-7));
  EXPECT_TRUE(of_weight.allclose(expected_of_weight, 1e-4, 1e-7));
  const at::Tensor sum = linear_cross_entropy(
      x, weight, target, bias,
      {.ignore_index = 3, .label_smoothing = 0.1, .z_loss = 0.5, .reduction = LossReduction::kSum});
  const at::Tensor squares = logits.logsumexp(1).square().masked_select(target.view(-1).ne(3)).sum();
  const at::Tensor smoothed = at::cross_entropy_loss(logits, target.view(-1), {}, at::Reduction::Sum, 3, 0.1);
  EXPECT_TRUE(sum.allclose(smoothed + 0.5 * squares));
  EXPECT_THROW(linear_cross_entropy(x, weight, target.fill_(30), bias), c10::IndexError);
}

TEST(Dropout, ReturnsItsInputWhereItDoesNothing) {
  at::Tensor x = at::randn({8});
  EXPECT_TRUE(actnn::dropout(x, 0.5, /*training=*/false).is_same(x));
  EXPECT_TRUE(actnn::dropout(x, 0.0, /*training=*/true).is_same(x));
  EXPECT_TRUE(actnn::dropout_(x, 0.5, /*training=*/false).is_same(x));
  EXPECT_THROW(actnn::dropout(x, -0.1, /*training=*/false), c10::Error);
}

TEST(Relu, WorksInPlaceOnAnIntermediate) {
  const at::Tensor x = at::randn({64}).requires_grad_();
  at::Tensor y = x * 2;
  actnn::relu_(y);
  y.sum().backward();
  EXPECT_TRUE(x.grad().equal((x > 0).to(at::kFloat) * 2));
}

TEST(Pooling, OneDimensionalPoolsEqualTorchs) {
  const at::Tensor x = at::randn({2, 3, 17}).requires_grad_();
  const at::Tensor y = actnn::avg_pool1d(x, {.kernel_size = {3}, .stride = {2}, .padding = {1}});
  EXPECT_TRUE(y.equal(at::avg_pool1d(x, 3, 2, 1)));
  EXPECT_TRUE(actnn::avg_pool1d(x, {.kernel_size = {3}}).equal(at::avg_pool1d(x, 3)));
  EXPECT_TRUE(actnn::adaptive_avg_pool1d(x, 4).equal(at::adaptive_avg_pool1d(x, 4)));
  y.sum().backward();
  const at::Tensor grad = x.grad().clone();
  x.mutable_grad() = at::Tensor();
  at::avg_pool1d(x, 3, 2, 1).sum().backward();
  EXPECT_TRUE(x.grad().equal(grad));
}

TEST(Pooling, MaxPoolTakesSingleEntriesAndAnEmptyStride) {
  const at::Tensor x = at::randn({2, 3, 9, 9});
  EXPECT_TRUE(actnn::max_pool2d(x, {.kernel_size = {3}}).equal(at::max_pool2d(x, 3)));
}

TEST(BatchNorm, WithoutGradientsSavesNothingAndIsExact) {
  const at::Tensor x = at::randn({4, 3, 5});
  EXPECT_FALSE(actnn::batch_norm(x, {}, {}, {}, {}, true, 0.1, 1e-5).requires_grad());
}

}  // namespace
}  // namespace actnn
