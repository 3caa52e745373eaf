#include "actnn/nn/convolution.h"

#include <torch/nn/modules/container/sequential.h>

#include "actnn/memory/observer.h"
#include "tests/cpp/nn/layer_comparison.h"

namespace {

using actnn_test::bit_equal;
using actnn_test::expect_same_layers;

class ConvolutionTest : public actnn_test::LayerTest {
 protected:
  /// Compares the layers for the same options, set by `set` on torch's and on ours.
  template <class Ours, class Theirs, class Set>
  void compare(at::IntArrayRef size, int64_t in_channels, int64_t out_channels,
               std::initializer_list<int64_t> kernel_size, const Set& set) {
    auto ours = make_options<Ours>(in_channels, out_channels, kernel_size);
    auto theirs = make_options<Theirs>(in_channels, out_channels, kernel_size);
    set(ours);
    set(theirs);
    expect_same_layers<typename Ours::Layer, typename Theirs::Layer>(ours.bits(8), theirs, input(size),
                                                                     actnn_test::kEightBitProduct);
  }

 private:
  template <class Options>
  Options make_options(int64_t in_channels, int64_t out_channels, std::initializer_list<int64_t> kernel_size) {
    return Options(in_channels, out_channels, kernel_size);
  }
};

template <class Options, class Layer_>
struct With : Options {
  using Options::Options;
  using Layer = Layer_;
};
using Ours1d = With<actnn::nn::Conv1dOptions, actnn::nn::Conv1d>;
using Ours2d = With<actnn::nn::Conv2dOptions, actnn::nn::Conv2d>;
using Ours3d = With<actnn::nn::Conv3dOptions, actnn::nn::Conv3d>;
using Theirs1d = With<torch::nn::Conv1dOptions, torch::nn::Conv1d>;
using Theirs2d = With<torch::nn::Conv2dOptions, torch::nn::Conv2d>;
using Theirs3d = With<torch::nn::Conv3dOptions, torch::nn::Conv3d>;
using OursTransposed1d = With<actnn::nn::ConvTranspose1dOptions, actnn::nn::ConvTranspose1d>;
using OursTransposed2d = With<actnn::nn::ConvTranspose2dOptions, actnn::nn::ConvTranspose2d>;
using OursTransposed3d = With<actnn::nn::ConvTranspose3dOptions, actnn::nn::ConvTranspose3d>;
using TheirsTransposed1d = With<torch::nn::ConvTranspose1dOptions, torch::nn::ConvTranspose1d>;
using TheirsTransposed2d = With<torch::nn::ConvTranspose2dOptions, torch::nn::ConvTranspose2d>;
using TheirsTransposed3d = With<torch::nn::ConvTranspose3dOptions, torch::nn::ConvTranspose3d>;

const auto kNothing = [](auto&) {};

TEST_P(ConvolutionTest, DefaultOptions) {
  compare<Ours1d, Theirs1d>({2, 3, 17}, 3, 5, {3}, kNothing);
  compare<Ours2d, Theirs2d>({2, 3, 9, 8}, 3, 5, {3, 2}, kNothing);
  compare<Ours3d, Theirs3d>({2, 3, 5, 4, 6}, 3, 4, {3, 2, 3}, kNothing);
}

TEST_P(ConvolutionTest, Unbatched) {
  compare<Ours1d, Theirs1d>({3, 17}, 3, 5, {3}, kNothing);
  compare<Ours2d, Theirs2d>({3, 9, 8}, 3, 5, {3, 3}, kNothing);
  compare<Ours3d, Theirs3d>({3, 5, 4, 6}, 3, 4, {3, 3, 3}, kNothing);
}

TEST_P(ConvolutionTest, StridePaddingDilationGroupsBias) {
  compare<Ours2d, Theirs2d>({2, 4, 11, 10}, 4, 6, {3, 3}, [](auto& options) {
    options.stride({2, 1});
    options.padding({1, 2});
    options.dilation({1, 2});
    options.groups(2);
    options.bias(false);
  });
  compare<Ours1d, Theirs1d>({2, 4, 21}, 4, 4, {5}, [](auto& options) { options.stride(3).padding(2).groups(4); });
  compare<Ours3d, Theirs3d>({1, 4, 5, 7, 6}, 4, 2, {3, 3, 3}, [](auto& options) { options.stride(2).padding(1); });
}

TEST_P(ConvolutionTest, ValidPadding) {
  compare<Ours2d, Theirs2d>({2, 3, 7, 7}, 3, 4, {3, 3}, [](auto& options) { options.padding(torch::kValid); });
}

TEST_P(ConvolutionTest, SamePaddingSymmetricAndNot) {
  const auto same = [](auto& options) { options.padding(torch::kSame); };
  compare<Ours1d, Theirs1d>({2, 3, 9}, 3, 4, {4}, same);
  compare<Ours2d, Theirs2d>({2, 3, 7, 8}, 3, 4, {3, 5}, same);
  compare<Ours2d, Theirs2d>({2, 3, 7, 8}, 3, 4, {4, 3}, same);
  compare<Ours2d, Theirs2d>({3, 7, 8}, 3, 4, {2, 4}, same);
  compare<Ours3d, Theirs3d>({1, 2, 5, 4, 6}, 2, 2, {2, 3, 4}, same);
  compare<Ours2d, Theirs2d>({2, 3, 9, 8}, 3, 4, {2, 3}, [](auto& options) {
    options.padding(torch::kSame);
    options.dilation({3, 2});
  });
}

TEST_P(ConvolutionTest, PaddingModes) {
  const auto with_mode = [&](const torch::nn::detail::conv_padding_mode_t& mode, const auto& padding) {
    const auto set = [&](auto& options) {
      options.padding(padding);
      options.padding_mode(mode);
    };
    compare<Ours1d, Theirs1d>({2, 3, 9}, 3, 4, {3}, set);
    compare<Ours2d, Theirs2d>({2, 3, 7, 8}, 3, 4, {3, 3}, set);
  };
  for (const auto& mode :
       std::vector<torch::nn::detail::conv_padding_mode_t>{torch::kReflect, torch::kReplicate, torch::kCircular}) {
    SCOPED_TRACE(torch::enumtype::get_enum_name(mode));
    with_mode(mode, 2);
    with_mode(mode, torch::kSame);
    with_mode(mode, torch::kValid);
    compare<Ours3d, Theirs3d>({1, 1, 3, 4, 5}, 1, 2, {3, 3, 3}, [&](auto& options) {
      options.padding({1, 2, 0});
      options.padding_mode(mode);
    });
    compare<Ours2d, Theirs2d>({2, 3, 7, 8}, 3, 4, {3, 3}, [&](auto& options) {
      options.padding({1, 3});
      options.padding_mode(mode);
    });
    compare<Ours2d, Theirs2d>({2, 3, 9, 8}, 3, 4, {5, 2}, [&](auto& options) {
      options.padding(torch::kSame);
      options.padding_mode(mode);
    });
    compare<Ours2d, Theirs2d>({3, 7, 8}, 3, 4, {3, 3}, [&](auto& options) {
      options.padding(1);
      options.padding_mode(mode);
    });
  }
}

TEST_P(ConvolutionTest, Transposed) {
  compare<OursTransposed1d, TheirsTransposed1d>({2, 3, 9}, 3, 4, {3}, kNothing);
  compare<OursTransposed2d, TheirsTransposed2d>({2, 3, 7, 6}, 3, 4, {3, 2}, kNothing);
  compare<OursTransposed3d, TheirsTransposed3d>({1, 3, 4, 3, 5}, 3, 2, {2, 3, 2}, kNothing);
  compare<OursTransposed2d, TheirsTransposed2d>({3, 7, 6}, 3, 4, {3, 2}, kNothing);
  compare<OursTransposed2d, TheirsTransposed2d>({2, 4, 7, 6}, 4, 6, {3, 3}, [](auto& options) {
    options.stride({2, 3});
    options.padding({1, 0});
    options.output_padding({1, 2});
    options.dilation(2);
    options.groups(2);
    options.bias(false);
  });
}

INSTANTIATE_TEST_SUITE_P(Formats, ConvolutionTest, actnn_test::all_formats(), actnn_test::format_name);

TEST(ConvTranspose2d, OutputSizeChoosesTheOutputPadding) {
  at::manual_seed(3);
  actnn::nn::ConvTranspose2d ours(actnn::nn::ConvTranspose2dOptions(2, 3, 3).stride(2).padding(1));
  at::manual_seed(3);
  torch::nn::ConvTranspose2d theirs(torch::nn::ConvTranspose2dOptions(2, 3, 3).stride(2).padding(1));
  const at::Tensor input = at::randn({2, 2, 5, 4});
  for (const std::vector<int64_t>& size : {std::vector<int64_t>{9, 8}, {10, 7}, {2, 3, 9, 7}}) {
    EXPECT_TRUE(bit_equal(ours->forward(input, size), theirs->forward(input, size)));
  }
  EXPECT_EQ(ours->forward(input[0], std::vector<int64_t>{10, 8}).sizes(), at::IntArrayRef({3, 10, 8}));
  EXPECT_THROW(ours->forward(input, std::vector<int64_t>{11, 8}), c10::ValueError);
  EXPECT_THROW(ours->forward(input, std::vector<int64_t>{9}), c10::ValueError);
}

TEST(ConvTranspose1d, OutputSizeAccountsForDilation) {
  actnn::nn::ConvTranspose1d layer(actnn::nn::ConvTranspose1dOptions(2, 3, 3).stride(2).dilation(3));
  EXPECT_EQ(layer->forward(at::randn({1, 2, 5}), std::vector<int64_t>{16}).sizes(), at::IntArrayRef({1, 3, 16}));
}

TEST(ConvTranspose2d, WorksInSequential) {
  torch::nn::Sequential sequential(actnn::nn::ConvTranspose2d(2, 3, 3));
  EXPECT_EQ(sequential->forward(at::randn({1, 2, 4, 4})).sizes(), at::IntArrayRef({1, 3, 6, 6}));
}

TEST(ConvTranspose2d, RefusesPaddingModesAsTorchDoes) {
  actnn::nn::ConvTranspose2d layer(actnn::nn::ConvTranspose2dOptions(2, 3, 3).padding_mode(torch::kReflect));
  EXPECT_THROW(layer->forward(at::randn({1, 2, 4, 4})), c10::ValueError);
}

TEST(Conv2d, RefusesWrongOptions) {
  using Options = actnn::nn::Conv2dOptions;
  EXPECT_THROW(actnn::nn::Conv2d(Options(3, 4, 3).groups(2)), c10::ValueError);
  EXPECT_THROW(actnn::nn::Conv2d(Options(0, 4, 3)), c10::ValueError);
  EXPECT_THROW(actnn::nn::Conv2d(Options(3, 4, 3).bits(9)), c10::ValueError);
  EXPECT_THROW(actnn::nn::Conv2d(Options(3, 4, 3).group_size(100)), c10::ValueError);
  EXPECT_THROW(actnn::nn::Conv2d(Options(3, 4, 3).padding(torch::kSame).stride(2)), c10::ValueError);
}

/// Bytes that a forward on an activation that nobody else holds leaves behind, besides its result.
template <class Layer>
int64_t saved_bytes(Layer layer, const at::Tensor& leaf) {
  const actnn::AllocationObserver observer;
  const at::Tensor output = layer->forward(leaf * 1);
  return observer.live_bytes() - static_cast<int64_t>(output.nbytes());
}

TEST(Conv2d, SavesACompressedInputWithEveryPaddingMode) {
  const at::Tensor input = at::randn({4, 16, 32, 32}).requires_grad_();
  for (const auto& mode : std::vector<torch::nn::detail::conv_padding_mode_t>{torch::kZeros, torch::kReflect,
                                                                              torch::kReplicate, torch::kCircular}) {
    const auto bytes = [&](int64_t bits) {
      return saved_bytes(actnn::nn::Conv2d(actnn::nn::Conv2dOptions(16, 8, 3).padding(1).padding_mode(mode).bits(bits)),
                         input);
    };
    EXPECT_LT(bytes(4), static_cast<int64_t>(input.nbytes()) / 5) << torch::enumtype::get_enum_name(mode);
    EXPECT_LT(bytes(2), bytes(4));
  }
}

TEST(Conv2d, FrozenWeightSavesNoInput) {
  actnn::nn::Conv2d layer(16, 8, 3);
  layer->weight.set_requires_grad(false);
  EXPECT_LT(saved_bytes(layer, at::randn({4, 16, 32, 32})), 1000);
}

}  // namespace
