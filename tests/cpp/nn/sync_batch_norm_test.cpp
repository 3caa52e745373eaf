#include <torch/nn/modules/container/sequential.h>

#include <chrono>
#include <memory>
#include <optional>
#include <sstream>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <vector>

#include "actnn/nn/batch_norm.h"
#include "actnn/nn/chain.h"
#include "actnn/nn/convert.h"
#include "tests/cpp/nn/layer_comparison.h"

namespace {

using actnn::nn::BatchNormOptions;
using actnn::nn::SyncBatchNorm;
using actnn_test::relative_error;

constexpr const char* kGroup = "sync_batch_norm_test";

class Done : public c10d::Work {
 public:
  bool wait(std::chrono::milliseconds /*timeout*/) override { return true; }
};

/// Two ranks, of which the other one always has the same batch.
class Twins : public c10d::Backend {
 public:
  Twins() : Backend(/*rank=*/0, /*size=*/2) {}

  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& /*options*/) override {
    for (at::Tensor& tensor : tensors) {
      tensor.mul_(2);
    }
    return c10::make_intrusive<Done>();
  }
};

/// Registers the twins' group, which the registry does not own.
class RegisteredTwins {
 public:
  RegisteredTwins() {
    group_->setBackend(at::kCPU, c10d::ProcessGroup::BackendType::CUSTOM, c10::make_intrusive<Twins>());
    c10d::register_process_group(kGroup, group_);
  }
  ~RegisteredTwins() { c10d::unregister_process_group(kGroup); }
  RegisteredTwins(const RegisteredTwins&) = delete;
  RegisteredTwins& operator=(const RegisteredTwins&) = delete;

 private:
  c10::intrusive_ptr<c10d::ProcessGroup> group_ = c10::make_intrusive<c10d::ProcessGroup>(/*rank=*/0, /*size=*/2);
};

/// tests/python/test_sync_batch_norm.py has groups of several processes.
class SyncBatchNormTest : public actnn_test::LayerTest {
 protected:
  double rounding() const { return dtype() == at::kFloat ? 1e-5 : dtype() == at::kHalf ? 2e-3 : 2e-2; }

  /// Results, gradients and running statistics of two steps and an evaluation, against torch's on the batch twice.
  template <class Torch>
  void compare(const BatchNormOptions& options, Torch theirs, const at::Tensor& values) {
    SyncBatchNorm ours(BatchNormOptions(options).bits(8), kGroup);
    for (int step = 0; step < 3; ++step) {
      SCOPED_TRACE(step);
      ours->train(step < 2);
      theirs->train(step < 2);
      const at::Tensor our_input = (values + step).requires_grad_();
      const at::Tensor their_input = (values + step).requires_grad_();
      const at::Tensor actual = ours->forward(our_input);
      const at::Tensor expected = theirs->forward(at::cat({their_input, their_input}));
      EXPECT_EQ(actual.scalar_type(), dtype());
      EXPECT_LT(relative_error(actual, expected.narrow(0, 0, values.size(0))), rounding());
      const at::Tensor gradient = at::randn(actual.sizes()).to(dtype());
      actual.backward(gradient);
      expected.backward(at::cat({gradient, gradient}));
      EXPECT_LT(relative_error(our_input.grad() * 2, their_input.grad()), 0.05);
      const auto our_parameters = ours->named_parameters();
      for (const auto& parameter : theirs->named_parameters()) {
        EXPECT_LT(relative_error(our_parameters[parameter.key()].grad() * 2, parameter->grad()), 0.05)
            << parameter.key();
      }
      ours->zero_grad();
      theirs->zero_grad();
    }
    const auto our_buffers = ours->named_buffers();
    ASSERT_EQ(our_buffers.keys(), theirs->named_buffers().keys());
    for (const auto& buffer : theirs->named_buffers()) {
      EXPECT_LT(relative_error(our_buffers[buffer.key()], buffer.value()), rounding()) << buffer.key();
    }
  }

  const RegisteredTwins twins;

  template <class Set>
  void compare_ranks(const Set& set) {
    BatchNormOptions ours(6);
    torch::nn::BatchNormOptions theirs(6);
    set(ours);
    set(theirs);
    compare(ours, torch::nn::BatchNorm1d(theirs), input({40, 6}));
    compare(ours, torch::nn::BatchNorm1d(theirs), input({8, 6, 9}));
    compare(ours, torch::nn::BatchNorm2d(theirs), input({4, 6, 7, 5}));
    compare(ours, torch::nn::BatchNorm3d(theirs), input({2, 6, 4, 3, 5}));
  }
};

TEST_P(SyncBatchNormTest, DefaultOptions) {
  compare_ranks([](auto&) {});
}

TEST_P(SyncBatchNormTest, EpsAndMomentum) {
  compare_ranks([](auto& options) { options.eps(0.1).momentum(0.7); });
}

TEST_P(SyncBatchNormTest, CumulativeAverage) {
  compare_ranks([](auto& options) { options.momentum(std::nullopt); });
}

TEST_P(SyncBatchNormTest, WithoutRunningStatistics) {
  compare_ranks([](auto& options) { options.track_running_stats(false); });
}

TEST_P(SyncBatchNormTest, WithoutAffine) {
  compare_ranks([](auto& options) { options.affine(false); });
}

INSTANTIATE_TEST_SUITE_P(Formats, SyncBatchNormTest, actnn_test::all_formats(), actnn_test::format_name);

TEST(SyncBatchNorm, RunsInAChain) {
  const RegisteredTwins twins;
  torch::nn::Conv2d convolution(torch::nn::Conv2dOptions(3, 6, 3));
  SyncBatchNorm norm(BatchNormOptions(6), kGroup);
  torch::nn::BatchNorm2d expected_norm(6);
  actnn::nn::ChainBuilder builder;
  builder.activation(builder.norm(builder.convolution(builder.input(), convolution), norm),
                     actnn::nn::ActivationKind::kReLU);
  const actnn::nn::Chain chain = builder.build({.bits = 8});
  const auto layers = [&](const at::Tensor& input) { return expected_norm->forward(convolution(input)).relu(); };
  for (const bool training : {true, false}) {
    norm->train(training);
    expected_norm->train(training);
    const at::Tensor our_input = at::randn({4, 3, 8, 8}).requires_grad_();
    const at::Tensor their_input = our_input.detach().clone().requires_grad_();
    const at::Tensor actual = chain.forward(our_input);
    const at::Tensor expected = layers(at::cat({their_input, their_input}));
    EXPECT_LT(relative_error(actual, expected.narrow(0, 0, 4)), 1e-5);
    const at::Tensor gradient = at::randn_like(actual);
    actual.backward(gradient);
    expected.backward(at::cat({gradient, gradient}));
    EXPECT_LT(relative_error(our_input.grad() * 2, their_input.grad()), 0.05);
  }
}

TEST(SyncBatchNorm, WithoutRunningStatisticsIsInNoChain) {
  const SyncBatchNorm untracked(BatchNormOptions(6).track_running_stats(false), kGroup);
  EXPECT_THROW(actnn::nn::ChainBuilder().norm({0}, untracked), c10::ValueError);
}

TEST(SyncBatchNorm, NeedsItsGroupInTrainingModeOnly) {
  SyncBatchNorm layer(BatchNormOptions(3), "absent");
  EXPECT_THROW(layer->forward(at::randn({4, 3})), c10::ValueError);
  layer->eval();
  EXPECT_EQ(layer->forward(at::randn({4, 3})).numel(), 12);
  SyncBatchNorm untracked(BatchNormOptions(3).track_running_stats(false), "absent");
  untracked->eval();
  EXPECT_LT(untracked->forward(at::randn({400, 3})).mean().abs().item<double>(), 1e-5);
}

TEST(SyncBatchNorm, NamesTheGroupThatIsGone) {
  c10d::register_process_group("gone", c10::make_intrusive<c10d::ProcessGroup>(/*rank=*/0, /*size=*/1));
  SyncBatchNorm layer(BatchNormOptions(3), "gone");
  EXPECT_THROW(layer->forward(at::randn({4, 3})), c10::ValueError);
  c10d::unregister_process_group("gone");
}

TEST(SyncBatchNorm, RefusesInputsWithoutChannels) {
  SyncBatchNorm layer(BatchNormOptions(3), "absent");
  EXPECT_THROW(layer->forward(at::randn({3})), c10::ValueError);
  EXPECT_EQ(layer->num_batches_tracked.item<int64_t>(), 0);
}

TEST(SyncBatchNorm, ACopyKeepsGroupAndOptions) {
  SyncBatchNorm layer(BatchNormOptions(3).bits(2), "group of the original");
  const auto copy = std::dynamic_pointer_cast<actnn::nn::SyncBatchNormImpl>(layer->clone());
  EXPECT_EQ(copy->group_name, "group of the original");
  EXPECT_EQ(copy->quantization().bits, 2);
  EXPECT_FALSE(copy->weight.is_same(layer->weight));
  std::ostringstream text;
  text << *layer;
  EXPECT_EQ(text.str(),
            "actnn::nn::SyncBatchNorm(3, eps=1e-05, momentum=0.1, affine=true, track_running_stats=true, bits=2)");
}

TEST(SyncBatchNorm, ConversionLeavesItAsItIs) {
  torch::nn::Sequential model(SyncBatchNorm(BatchNormOptions(3), kGroup));
  const auto* layer = model->ptr(0).get();
  const auto report = actnn::nn::convert(model);
  EXPECT_EQ(model->ptr(0).get(), layer);
  EXPECT_EQ(report.entries.at(1).reason, "already compressed");
}

}  // namespace
