#include "actnn/nn/batch_norm.h"

#include "tests/cpp/nn/layer_comparison.h"

namespace {

using actnn_test::bit_equal;
using actnn_test::expect_same_layers;

class BatchNormTest : public actnn_test::LayerTest {
 protected:
  template <class Set>
  void compare(const Set& set) {
    actnn::nn::BatchNormOptions ours(6);
    torch::nn::BatchNormOptions theirs(6);
    set(ours);
    set(theirs);
    ours.bits(8);
    const actnn_test::Tolerance tolerance{
        .input = 0.05, .weight = 0.05, .exact_input_in_evaluation = ours.track_running_stats()};
    expect_same_layers<actnn::nn::BatchNorm1d, torch::nn::BatchNorm1d>(ours, theirs, input({40, 6}), tolerance);
    expect_same_layers<actnn::nn::BatchNorm1d, torch::nn::BatchNorm1d>(ours, theirs, input({8, 6, 9}), tolerance);
    expect_same_layers<actnn::nn::BatchNorm2d, torch::nn::BatchNorm2d>(ours, theirs, input({4, 6, 7, 5}), tolerance);
    expect_same_layers<actnn::nn::BatchNorm3d, torch::nn::BatchNorm3d>(ours, theirs, input({2, 6, 4, 3, 5}), tolerance);
  }
};

TEST_P(BatchNormTest, DefaultOptions) {
  compare([](auto&) {});
}

TEST_P(BatchNormTest, EpsAndMomentum) {
  compare([](auto& options) { options.eps(0.1).momentum(0.7); });
}

TEST_P(BatchNormTest, CumulativeAverage) {
  compare([](auto& options) { options.momentum(std::nullopt); });
}

TEST_P(BatchNormTest, WithoutRunningStatistics) {
  compare([](auto& options) { options.track_running_stats(false); });
}

TEST_P(BatchNormTest, WithoutAffine) {
  compare([](auto& options) { options.affine(false); });
  compare([](auto& options) { options.affine(false).track_running_stats(false); });
}

INSTANTIATE_TEST_SUITE_P(Formats, BatchNormTest, actnn_test::all_formats(), actnn_test::format_name);

TEST(BatchNorm2d, RunningStatisticsOfSeveralBatchesAreTorchs) {
  for (const std::optional<double> momentum : {std::optional<double>(), std::optional<double>(0.3)}) {
    actnn::nn::BatchNorm2d ours(actnn::nn::BatchNorm2dOptions(3).momentum(momentum));
    torch::nn::BatchNorm2d theirs(torch::nn::BatchNorm2dOptions(3).momentum(momentum));
    for (int batch = 0; batch < 4; ++batch) {
      const at::Tensor input = at::randn({5, 3, 4, 4}) * (batch + 1) + batch;
      ours->forward(input);
      theirs->forward(input);
    }
    EXPECT_TRUE(bit_equal(ours->running_mean, theirs->running_mean));
    EXPECT_TRUE(bit_equal(ours->running_var, theirs->running_var));
    EXPECT_EQ(ours->num_batches_tracked.item<int64_t>(), 4);
    ours->reset_running_stats();
    EXPECT_EQ(ours->num_batches_tracked.item<int64_t>(), 0);
    EXPECT_TRUE(at::equal(ours->running_var, at::ones({3})));
  }
}

TEST(BatchNorm, RefusesInputsOfTheWrongRank) {
  EXPECT_THROW(actnn::nn::BatchNorm1d(3)->forward(at::randn({2, 3, 4, 4})), c10::ValueError);
  EXPECT_THROW(actnn::nn::BatchNorm2d(3)->forward(at::randn({2, 3, 4})), c10::ValueError);
  EXPECT_THROW(actnn::nn::BatchNorm3d(3)->forward(at::randn({2, 3, 4, 4})), c10::ValueError);
}

TEST(BatchNorm, RefusesOneValuePerChannelInTrainingOnly) {
  actnn::nn::BatchNorm2d layer(3);
  EXPECT_THROW(layer->forward(at::randn({1, 3, 1, 1})), c10::ValueError);
  layer->eval();
  EXPECT_EQ(layer->forward(at::randn({1, 3, 1, 1})).numel(), 3);
}

}  // namespace
