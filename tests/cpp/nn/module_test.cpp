#include <torch/nn/modules/container/sequential.h>
#include <torch/serialize.h>

#include <sstream>
#include <tuple>
#include <utility>

#include "actnn/nn.h"
#include "tests/cpp/nn/layer_comparison.h"

namespace {

using actnn_test::bit_equal;

template <class ModuleType>
std::string printed(const ModuleType& module) {
  std::ostringstream stream;
  stream << module;
  return stream.str();
}

/// Layers of actnn::nn and torch's with other parameters.
auto all_pairs() {
  using namespace actnn;
  return std::make_tuple(
      std::pair{nn::Conv1d(2, 3, 3), torch::nn::Conv1d(2, 3, 3)},
      std::pair{nn::Conv2d(2, 3, 3), torch::nn::Conv2d(2, 3, 3)},
      std::pair{nn::Conv3d(2, 3, 3), torch::nn::Conv3d(2, 3, 3)},
      std::pair{nn::Conv2d(nn::Conv2dOptions(2, 3, 3).bias(false)),
                torch::nn::Conv2d(torch::nn::Conv2dOptions(2, 3, 3).bias(false))},
      std::pair{nn::ConvTranspose1d(2, 3, 3), torch::nn::ConvTranspose1d(2, 3, 3)},
      std::pair{nn::ConvTranspose2d(2, 3, 3), torch::nn::ConvTranspose2d(2, 3, 3)},
      std::pair{nn::ConvTranspose3d(2, 3, 3), torch::nn::ConvTranspose3d(2, 3, 3)},
      std::pair{nn::Linear(4, 3), torch::nn::Linear(4, 3)},
      std::pair{nn::Linear(nn::LinearOptions(4, 3).bias(false)),
                torch::nn::Linear(torch::nn::LinearOptions(4, 3).bias(false))},
      std::pair{nn::BatchNorm1d(3), torch::nn::BatchNorm1d(3)},
      std::pair{nn::BatchNorm2d(3), torch::nn::BatchNorm2d(3)},
      std::pair{nn::BatchNorm3d(3), torch::nn::BatchNorm3d(3)},
      std::pair{nn::BatchNorm2d(nn::BatchNormOptions(3).affine(false)),
                torch::nn::BatchNorm2d(torch::nn::BatchNormOptions(3).affine(false))},
      std::pair{nn::BatchNorm2d(nn::BatchNormOptions(3).track_running_stats(false)),
                torch::nn::BatchNorm2d(torch::nn::BatchNormOptions(3).track_running_stats(false))},
      std::pair{nn::LayerNorm(nn::LayerNormOptions({3, 4})), torch::nn::LayerNorm(torch::nn::LayerNormOptions({3, 4}))},
      std::pair{nn::GroupNorm(2, 4), torch::nn::GroupNorm(2, 4)},
      std::pair{nn::GroupNorm(nn::GroupNormOptions(2, 4).affine(false)),
                torch::nn::GroupNorm(torch::nn::GroupNormOptions(2, 4).affine(false))},
      std::pair{nn::InstanceNorm1d(3), torch::nn::InstanceNorm1d(3)},
      std::pair{nn::InstanceNorm2d(nn::InstanceNorm2dOptions(3).affine(true)),
                torch::nn::InstanceNorm2d(torch::nn::InstanceNorm2dOptions(3).affine(true))},
      std::pair{nn::InstanceNorm3d(nn::InstanceNorm3dOptions(3).track_running_stats(true)),
                torch::nn::InstanceNorm3d(torch::nn::InstanceNorm3dOptions(3).track_running_stats(true))},
      std::pair{nn::Embedding(5, 3), torch::nn::Embedding(5, 3)},
      std::pair{nn::PReLU(nn::PReLUOptions().num_parameters(3)),
                torch::nn::PReLU(torch::nn::PReLUOptions().num_parameters(3))},
      std::pair{nn::GELU(), torch::nn::GELU()}, std::pair{nn::SiLU(), torch::nn::SiLU()},
      std::pair{nn::Softmax(1), torch::nn::Softmax(1)}, std::pair{nn::LeakyReLU(), torch::nn::LeakyReLU()},
      std::pair{nn::MaxPool3d(2), torch::nn::MaxPool3d(2)}, std::pair{nn::ReLU(), torch::nn::ReLU()},
      std::pair{nn::Dropout(), torch::nn::Dropout()}, std::pair{nn::MaxPool2d(2), torch::nn::MaxPool2d(2)},
      std::pair{nn::AvgPool2d(2), torch::nn::AvgPool2d(2)},
      std::pair{nn::AdaptiveAvgPool2d(2), torch::nn::AdaptiveAvgPool2d(2)});
}

template <class Function>
void for_each_pair(const Function& function) {
  std::apply([&](auto... pairs) { (function(pairs.first, pairs.second), ...); }, all_pairs());
}

/// Every tensor that a state dictionary holds gets another value.
void scramble(torch::nn::Module& module) {
  const at::NoGradGuard no_grad;
  for (auto& parameter : module.parameters()) {
    parameter.normal_();
  }
  for (auto& buffer : module.buffers()) {
    buffer.add_(3);
  }
}

void expect_same_state(const torch::nn::Module& actual, const torch::nn::Module& expected) {
  const auto parameters = actual.named_parameters();
  ASSERT_EQ(parameters.keys(), expected.named_parameters().keys());
  for (const auto& parameter : expected.named_parameters()) {
    EXPECT_TRUE(bit_equal(parameters[parameter.key()], parameter.value())) << parameter.key();
  }
  const auto buffers = actual.named_buffers();
  ASSERT_EQ(buffers.keys(), expected.named_buffers().keys());
  for (const auto& buffer : expected.named_buffers()) {
    EXPECT_TRUE(bit_equal(buffers[buffer.key()], buffer.value())) << buffer.key();
  }
}

template <class From, class To>
void save_and_load(From& from, To& to) {
  std::stringstream archive;
  torch::save(from, archive);
  torch::load(to, archive);
}

TEST(Modules, LoadTorchsArchives) {
  for_each_pair([](auto& ours, auto& theirs) {
    SCOPED_TRACE(printed(ours));
    scramble(*theirs);
    save_and_load(theirs, ours);
    expect_same_state(*ours, *theirs);
  });
}

TEST(Modules, WriteArchivesThatTorchLoads) {
  for_each_pair([](auto& ours, auto& theirs) {
    SCOPED_TRACE(printed(ours));
    scramble(*ours);
    save_and_load(ours, theirs);
    expect_same_state(*theirs, *ours);
  });
}

TEST(Modules, CloneCopiesStateAndOptions) {
  for_each_pair([](auto& ours, auto&) {
    SCOPED_TRACE(printed(ours));
    using Impl = typename std::decay_t<decltype(ours)>::Impl;
    scramble(*ours);
    ours->eval();
    const auto copy = std::dynamic_pointer_cast<Impl>(ours->clone());
    ASSERT_TRUE(copy);
    expect_same_state(*copy, *ours);
    EXPECT_EQ(printed(*copy), printed(*ours));
    EXPECT_FALSE(copy->is_training());
    const auto before = ours->parameters();
    scramble(*copy);
    for (size_t i = 0; i < before.size(); ++i) {
      EXPECT_FALSE(bit_equal(copy->parameters()[i], before[i]));
    }
  });
}

TEST(Modules, CloneKeepsTheQuantization) {
  actnn::nn::Conv2d layer(actnn::nn::Conv2dOptions(2, 3, 3).bits(3).group_size(64).rounding(actnn::Rounding::kNearest));
  const auto copy = std::dynamic_pointer_cast<actnn::nn::Conv2dImpl>(layer->clone());
  EXPECT_EQ(copy->options.bits(), 3);
  EXPECT_EQ(copy->options.group_size(), 64);
  EXPECT_EQ(copy->options.rounding(), actnn::Rounding::kNearest);
}

TEST(Modules, TakeOverTheTensorsOfTorchsLayers) {
  for_each_pair([](auto& ours, auto& theirs) {
    SCOPED_TRACE(printed(theirs));
    scramble(*theirs);
    theirs->eval();
    const std::decay_t<decltype(ours)> taken(*theirs);
    expect_same_state(*taken, *theirs);
    EXPECT_FALSE(taken->is_training());
    for (size_t i = 0; i < theirs->parameters().size(); ++i) {
      EXPECT_TRUE(taken->parameters()[i].is_same(theirs->parameters()[i]));
    }
    for (size_t i = 0; i < theirs->buffers().size(); ++i) {
      EXPECT_TRUE(taken->buffers()[i].is_same(theirs->buffers()[i]));
    }
    EXPECT_EQ(printed(*taken->clone()), printed(taken));
  });
}

TEST(Modules, PrintTheirOptions) {
  using namespace actnn::nn;
  EXPECT_EQ(printed(Conv2d(Conv2dOptions(3, 8, 3).padding(1).dilation(2).bias(false).bits(2))),
            "actnn::nn::Conv2d(3, 8, kernel_size=[3, 3], stride=[1, 1], padding=[1, 1], dilation=[2, 2], bias=false, "
            "bits=2)");
  EXPECT_EQ(
      printed(Conv1d(Conv1dOptions(4, 8, 3).padding(torch::kSame).groups(2).padding_mode(torch::kCircular))),
      "actnn::nn::Conv1d(4, 8, kernel_size=3, stride=1, padding='same', groups=2, padding_mode=kCircular, bits=4)");
  EXPECT_EQ(
      printed(ConvTranspose3d(ConvTranspose3dOptions(3, 8, 2).stride(2).output_padding(1))),
      "actnn::nn::ConvTranspose3d(3, 8, kernel_size=[2, 2, 2], stride=[2, 2, 2], output_padding=[1, 1, 1], bits=4)");
  EXPECT_EQ(printed(Linear(3, 4)), "actnn::nn::Linear(in_features=3, out_features=4, bias=true, bits=4)");
  EXPECT_EQ(printed(BatchNorm2d(BatchNorm2dOptions(3).momentum(std::nullopt))),
            "actnn::nn::BatchNorm2d(3, eps=1e-05, momentum=None, affine=true, track_running_stats=true, bits=4)");
  EXPECT_EQ(printed(LayerNorm(LayerNormOptions({3, 4}).bits(2))),
            "actnn::nn::LayerNorm([3, 4], eps=1e-05, elementwise_affine=true, bits=2)");
  EXPECT_EQ(printed(GroupNorm(2, 4)), "actnn::nn::GroupNorm(2, 4, eps=1e-05, affine=true, bits=4)");
  EXPECT_EQ(printed(InstanceNorm2d(3)),
            "actnn::nn::InstanceNorm2d(3, eps=1e-05, momentum=0.1, affine=false, track_running_stats=false, bits=4)");
  EXPECT_EQ(printed(Embedding(EmbeddingOptions(5, 3).padding_idx(-1).sparse(true))),
            "actnn::nn::Embedding(num_embeddings=5, embedding_dim=3, padding_idx=4, sparse=true)");
  EXPECT_EQ(printed(GELU(GELUOptions().approximate("tanh"))), "actnn::nn::GELU(approximate=tanh, bits=5)");
  EXPECT_EQ(printed(SiLU(SiLUOptions().bits(3))), "actnn::nn::SiLU(bits=5)");
  EXPECT_EQ(printed(SiLU(SiLUOptions().bits(6))), "actnn::nn::SiLU(bits=6)");
  EXPECT_EQ(printed(PReLU()), "actnn::nn::PReLU(num_parameters=1, bits=4)");
  EXPECT_EQ(printed(Softmax(1)), "actnn::nn::Softmax(dim=1, bits=4)");
  EXPECT_EQ(printed(LeakyReLU(LeakyReLUOptions().inplace(true))),
            "actnn::nn::LeakyReLU(negative_slope=0.01, inplace=true)");
  EXPECT_EQ(printed(Hardtanh()), "actnn::nn::Hardtanh(min_val=-1, max_val=1)");
  EXPECT_EQ(printed(ReLU(true)), "actnn::nn::ReLU(inplace=true)");
  EXPECT_EQ(printed(Dropout(0.25)), "actnn::nn::Dropout(p=0.25, inplace=false)");
  EXPECT_EQ(
      printed(MaxPool2d(2)),
      "actnn::nn::MaxPool2d(kernel_size=[2, 2], stride=[2, 2], padding=[0, 0], dilation=[1, 1], ceil_mode=false)");
  EXPECT_EQ(printed(AvgPool1d(2)), "actnn::nn::AvgPool1d(kernel_size=2, stride=2, padding=0)");
  EXPECT_EQ(printed(AdaptiveAvgPool2d(AdaptiveAvgPool2dOptions({std::nullopt, 2}))),
            "actnn::nn::AdaptiveAvgPool2d(output_size=[None, 2])");
}

TEST(Modules, WorkInSequentialAndAreFoundByType) {
  torch::nn::Sequential sequential(actnn::nn::Conv2d(3, 4, 3), actnn::nn::BatchNorm2d(4), actnn::nn::ReLU(),
                                   actnn::nn::MaxPool2d(2), actnn::nn::AvgPool2d(2), actnn::nn::Dropout(0.1),
                                   actnn::nn::AdaptiveAvgPool2d(1), torch::nn::Flatten(), actnn::nn::Linear(4, 2));
  EXPECT_EQ(sequential->forward(at::randn({2, 3, 16, 16})).sizes(), at::IntArrayRef({2, 2}));
  EXPECT_EQ(sequential->at<actnn::nn::Conv2dImpl>(0).options.out_channels(), 4);
}

TEST(Modules, BitsAreSetThroughQuantizedModule) {
  torch::nn::Sequential sequential(actnn::nn::Conv2d(3, 4, 3), actnn::nn::BatchNorm2d(4), actnn::nn::ReLU(),
                                   actnn::nn::Linear(4, 2));
  int layers = 0;
  for (const auto& module : sequential->modules()) {
    if (auto* layer = module->as<actnn::nn::QuantizedModule>()) {
      layer->quantization().bits = 2;
      ++layers;
    }
  }
  EXPECT_EQ(layers, 3);
  EXPECT_EQ(sequential->at<actnn::nn::Conv2dImpl>(0).options.bits(), 2);
}

}  // namespace
