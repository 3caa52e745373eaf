#include "actnn/nn/normalization.h"

#include "tests/cpp/nn/layer_comparison.h"

namespace {

using actnn_test::bit_equal;
using actnn_test::expect_same_layers;
using actnn_test::Tolerance;

/// Of 8-bit copies: gradients contain them in evaluation mode, too.
constexpr Tolerance kEightBitNorm{.input = 0.1, .weight = 0.1, .exact_input_in_evaluation = false};

using NormalizationTest = actnn_test::LayerTest;

TEST_P(NormalizationTest, LayerNorm) {
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{9}, {8, 9}}) {
    for (const bool affine : {true, false}) {
      expect_same_layers<actnn::nn::LayerNorm, torch::nn::LayerNorm>(
          actnn::nn::LayerNormOptions(shape).elementwise_affine(affine).eps(1e-3).bits(8),
          torch::nn::LayerNormOptions(shape).elementwise_affine(affine).eps(1e-3), input({4, 8, 9}), kEightBitNorm);
    }
  }
}

TEST_P(NormalizationTest, GroupNorm) {
  for (const std::vector<int64_t>& size : {std::vector<int64_t>{8, 6, 9}, {4, 6, 7, 5}, {2, 6, 4, 3, 5}}) {
    for (const bool affine : {true, false}) {
      expect_same_layers<actnn::nn::GroupNorm, torch::nn::GroupNorm>(
          actnn::nn::GroupNormOptions(2, 6).affine(affine).bits(8), torch::nn::GroupNormOptions(2, 6).affine(affine),
          input(size), kEightBitNorm);
    }
  }
}

TEST_P(NormalizationTest, InstanceNorm) {
  for (const bool affine : {true, false}) {
    for (const bool track : {true, false}) {
      const auto compare = [&]<class Ours, class Theirs>(at::IntArrayRef size) {
        Tolerance tolerance = kEightBitNorm;
        tolerance.exact_input_in_evaluation = track;
        expect_same_layers<Ours, Theirs>(
            actnn::nn::InstanceNormOptions(6).affine(affine).track_running_stats(track).momentum(0.3).bits(8),
            torch::nn::InstanceNormOptions(6).affine(affine).track_running_stats(track).momentum(0.3), input(size),
            tolerance);
      };
      compare.operator()<actnn::nn::InstanceNorm1d, torch::nn::InstanceNorm1d>({4, 6, 19});
      compare.operator()<actnn::nn::InstanceNorm1d, torch::nn::InstanceNorm1d>({6, 19});
      compare.operator()<actnn::nn::InstanceNorm2d, torch::nn::InstanceNorm2d>({3, 6, 7, 5});
      compare.operator()<actnn::nn::InstanceNorm3d, torch::nn::InstanceNorm3d>({2, 6, 4, 3, 5});
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, NormalizationTest, actnn_test::all_formats(), actnn_test::format_name);

TEST(Normalization, OtherTypesRunTorchsOperation) {
  const at::Tensor values = at::randn({3, 4, 5}, at::kDouble);
  const auto compare = [&](auto ours, auto theirs) {
    ours->to(at::kDouble);
    theirs->to(at::kDouble);
    EXPECT_TRUE(bit_equal(ours->forward(values), theirs->forward(values)));
  };
  compare(actnn::nn::LayerNorm(actnn::nn::LayerNormOptions({5})),
          torch::nn::LayerNorm(torch::nn::LayerNormOptions({5})));
  compare(actnn::nn::GroupNorm(2, 4), torch::nn::GroupNorm(2, 4));
  compare(actnn::nn::InstanceNorm1d(4), torch::nn::InstanceNorm1d(4));
}

TEST(Normalization, RefusesWrongArguments) {
  EXPECT_THROW(actnn::nn::LayerNorm(actnn::nn::LayerNormOptions({3}).bits(0)), c10::ValueError);
  EXPECT_THROW(actnn::nn::GroupNorm(actnn::nn::GroupNormOptions(2, 4).bits(9)), c10::ValueError);
  EXPECT_THROW(actnn::nn::InstanceNorm1d(actnn::nn::InstanceNormOptions(3).group_size(1)), c10::ValueError);
  EXPECT_THROW(actnn::nn::LayerNorm(actnn::nn::LayerNormOptions({3}))->forward(at::randn({2, 4})), c10::ValueError);
  EXPECT_THROW(actnn::nn::InstanceNorm2d(3)->forward(at::randn({2, 3})), c10::ValueError);
  EXPECT_THROW(actnn::nn::InstanceNorm2d(3)->forward(at::randn({2, 3, 1, 1})), c10::ValueError);
}

}  // namespace
