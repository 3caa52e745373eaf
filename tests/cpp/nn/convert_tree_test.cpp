#include <torch/nn/modules/container/functional.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/normalization.h>

#include "actnn/nn.h"
#include "tests/cpp/nn/layer_comparison.h"

namespace user {

/// A nested Sequential as users write it: torch's own cannot be an element.
struct BlockImpl : torch::nn::SequentialImpl {
  using SequentialImpl::SequentialImpl;
  at::Tensor forward(const at::Tensor& input) { return SequentialImpl::forward(input); }
};
TORCH_MODULE(Block);

struct NetImpl : torch::nn::Cloneable<NetImpl> {
  NetImpl() { reset(); }
  void reset() override {
    stem = register_module("stem", torch::nn::Conv2d(3, 4, 3));
    body = register_module("body", torch::nn::Sequential(torch::nn::BatchNorm2d(4), torch::nn::ReLU()));
    heads = register_module("heads", torch::nn::ModuleList(torch::nn::Linear(4, 2), torch::nn::Linear(4, 3)));
  }
  at::Tensor forward(const at::Tensor& input) {
    const at::Tensor features = body->forward(stem->forward(input)).mean({2, 3});
    return heads[0]->as<actnn::nn::Linear>()->forward(features);
  }
  torch::nn::Conv2d stem = nullptr;
  torch::nn::Sequential body = nullptr;
  torch::nn::ModuleList heads = nullptr;
};
TORCH_MODULE(Net);

struct ScaledLinearImpl : torch::nn::LinearImpl {
  using LinearImpl::LinearImpl;
  at::Tensor forward(const at::Tensor& input) { return LinearImpl::forward(input) * 2; }
};
TORCH_MODULE(ScaledLinear);

struct SquareImpl : torch::nn::Module {
  at::Tensor forward(const at::Tensor& input) { return input.square(); }
};
TORCH_MODULE(Square);

}  // namespace user

namespace {

using actnn::nn::ConversionOutcome;
using actnn_test::bit_equal;
using torch::nn::Sequential;

TEST(ConvertTree, ReachesContainersInsideUserModules) {
  user::Net net;
  const auto report = actnn::nn::convert(net);
  EXPECT_TRUE(net->body->ptr(0)->as<actnn::nn::BatchNorm2d>());
  EXPECT_TRUE(net->heads->ptr(1)->as<actnn::nn::Linear>());
  EXPECT_EQ(report.at("").outcome, ConversionOutcome::kTraversed);
  EXPECT_EQ(report.at("body").outcome, ConversionOutcome::kTraversed);
  EXPECT_EQ(report.at("heads.1").replacement, "actnn::nn::Linear");
  EXPECT_EQ(report.at("stem").outcome, ConversionOutcome::kLeftAlone);
  EXPECT_EQ(report.at("stem").reason,
            "held as a typed member of user::Net; hold it in a Sequential or use actnn::nn::Conv2d");
  EXPECT_EQ(report.entries.size(), net->modules().size());
  net->forward(at::randn({2, 3, 8, 8})).sum().backward();
}

TEST(ConvertTree, UserModulesCloneAfterwards) {
  user::Net net;
  actnn::nn::convert(net);
  const auto copy = std::dynamic_pointer_cast<user::NetImpl>(net->clone());
  ASSERT_TRUE(copy);
  EXPECT_TRUE(copy->body->ptr(0)->as<actnn::nn::BatchNorm2d>());
  const at::Tensor input = at::randn({2, 3, 8, 8});
  EXPECT_TRUE(bit_equal(copy->forward(input), net->forward(input)));
}

TEST(ConvertTree, ReachesNestedSequentials) {
  Sequential model(user::Block(torch::nn::Conv2d(3, 4, 3), user::Block(torch::nn::ReLU())), torch::nn::MaxPool2d(2));
  const at::Tensor input = at::randn({2, 3, 8, 8});
  const at::Tensor expected = model->forward(input);
  const auto report = actnn::nn::convert(model);
  EXPECT_EQ(report.at("0.0").replacement, "actnn::nn::Conv2d");
  EXPECT_EQ(report.at("0.1.0").replacement, "actnn::nn::ReLU");
  EXPECT_EQ(report.at("1").replacement, "actnn::nn::MaxPool2d");
  EXPECT_TRUE(bit_equal(model->forward(input), expected));
}

TEST(ConvertTree, AModuleUsedTwiceIsConvertedOnceAndStaysShared) {
  const torch::nn::Linear shared(3, 3);
  Sequential model(shared, torch::nn::ReLU(), shared);
  const auto report = actnn::nn::convert(model);
  EXPECT_TRUE(model->ptr(0)->as<actnn::nn::Linear>());
  EXPECT_EQ(model->ptr(0), model->ptr(2));
  EXPECT_EQ(model->children()[0], model->ptr(0));
  EXPECT_EQ(model->children()[2], model->ptr(0));
  EXPECT_EQ(report.at("2").reason, "the same as '0'");
}

TEST(ConvertTree, AModuleInTwoContainersStaysShared) {
  const torch::nn::Linear shared(3, 3);
  user::Block first(shared);
  user::Block second(torch::nn::ReLU(), shared);
  Sequential model(first, second, first);
  const auto report = actnn::nn::convert(model);
  EXPECT_EQ(first->ptr(0), second->ptr(1));
  EXPECT_TRUE(first->ptr(0)->as<actnn::nn::Linear>());
  EXPECT_EQ(report.at("2").outcome, ConversionOutcome::kTraversed);
  EXPECT_EQ(report.at("2").reason, "the same as '0'");
}

TEST(ConvertTree, TiedParametersStayTied) {
  torch::nn::Linear encoder(torch::nn::LinearOptions(3, 3).bias(false));
  torch::nn::Linear decoder(torch::nn::LinearOptions(3, 3).bias(false));
  const at::Tensor registered = decoder->weight;
  decoder->weight = encoder->weight;
  Sequential model(encoder, decoder);
  actnn::nn::convert(model);
  auto& first = model->at<actnn::nn::LinearImpl>(0);
  auto& second = model->at<actnn::nn::LinearImpl>(1);
  EXPECT_TRUE(second.weight.is_same(encoder->weight));
  EXPECT_TRUE(first.weight.is_same(encoder->weight));
  EXPECT_TRUE(second.named_parameters()["weight"].is_same(registered)) << "what is registered changed";
}

TEST(ConvertTree, AMemberThatIsAlsoAnElementIsConvertedAsAnElement) {
  struct Holder : torch::nn::Module {
    Holder() {
      fc = register_module("fc", torch::nn::Linear(3, 3));
      layers = register_module("layers", Sequential(fc));
    }
    torch::nn::Linear fc = nullptr;
    Sequential layers = nullptr;
  };
  Holder holder;
  const auto report = actnn::nn::convert(holder);
  EXPECT_EQ(report.at("fc").outcome, ConversionOutcome::kLeftAlone);
  ASSERT_EQ(report.at("layers.0").outcome, ConversionOutcome::kConverted);
  EXPECT_TRUE(holder.layers->at<actnn::nn::LinearImpl>(0).weight.is_same(holder.fc->weight));
}

TEST(ConvertTree, AChildRegisteredBesideTheElementsIsLeftAlone) {
  const torch::nn::ReLU relu;
  user::Block block(relu);
  const auto side = block->register_module("side", torch::nn::Linear(3, 3));
  const auto report = actnn::nn::convert(block);
  EXPECT_EQ(report.at("side").outcome, ConversionOutcome::kLeftAlone);
  EXPECT_EQ(block->named_children()["side"], side);
}

TEST(ConvertTree, SkipsByNameWithEverythingBelow) {
  Sequential model(user::Block(torch::nn::Linear(3, 3), torch::nn::ReLU()), torch::nn::Linear(3, 3));
  const auto report = actnn::nn::convert(model, {.skip = {"0"}});
  EXPECT_EQ(report.at("0").reason, "skipped by name");
  EXPECT_EQ(report.at("0.1").reason, "skipped with '0'");
  EXPECT_EQ(report.at("1").outcome, ConversionOutcome::kConverted);
  EXPECT_TRUE(model->at<user::BlockImpl>(0).ptr(0)->as<torch::nn::Linear>());
}

TEST(ConvertTree, SkipsByPredicate) {
  Sequential model(torch::nn::Linear(3, 4), torch::nn::ReLU(), torch::nn::Linear(4, 3));
  const auto report =
      actnn::nn::convert(model, {.skip_if = [](const std::string& path, const torch::nn::Module& module) {
                           return path == "2" && module.as<torch::nn::Linear>();
                         }});
  EXPECT_EQ(report.at("0").outcome, ConversionOutcome::kConverted);
  EXPECT_EQ(report.at("2").reason, "skipped by skip_if");
  EXPECT_TRUE(model->ptr(2)->as<torch::nn::Linear>());
}

TEST(ConvertTree, WrongOptionsAreErrorsAndChangeNothing) {
  Sequential model(torch::nn::Linear(3, 4));
  EXPECT_THROW(actnn::nn::convert(model, {.skip = {"0", "1.conv"}}), c10::ValueError);
  EXPECT_THROW(actnn::nn::convert(model, {.quantization = {.bits = 9}}), c10::ValueError);
  EXPECT_TRUE(model->ptr(0)->as<torch::nn::Linear>());
}

TEST(ConvertTree, ReportsWhyAModuleIsLeftAlone) {
  torch::nn::Linear wide(3, 3);
  wide->to(at::kDouble);
  torch::nn::Linear masked(3, 3);
  masked->register_buffer("mask", at::ones({3, 3}));
  Sequential model(torch::nn::LocalResponseNorm(3), torch::nn::Functional(at::tanh), torch::nn::Dropout2d(),
                   user::ScaledLinear(3, 3), user::Square(), wide, masked, torch::nn::Flatten(), actnn::nn::ReLU(),
                   torch::nn::AdaptiveMaxPool2d(2));
  const auto before = model->children();
  const auto report = actnn::nn::convert(model);
  EXPECT_EQ(report.count(ConversionOutcome::kConverted), 0);
  EXPECT_EQ(model->children(), before);
  EXPECT_EQ(report.at("0").reason, "torch::nn::LocalResponseNorm has no compressed form");
  EXPECT_EQ(
      report.at("1").reason,
      "torch::nn::Functional hides the function that it calls; use a module of actnn::nn, such as actnn::nn::ReLU");
  EXPECT_EQ(report.at("2").reason, "torch::nn::Dropout2d has no compressed form");
  EXPECT_EQ(report.at("3").reason, "user::ScaledLinear derives from torch::nn::Linear and may compute something else");
  EXPECT_EQ(report.at("4").reason, "a user-defined module; what it computes is not known");
  EXPECT_EQ(report.at("5").reason, "float64 weights are not supported, only float32, float16 and bfloat16");
  EXPECT_EQ(report.at("6").reason, "it has a buffer 'mask', which torch::nn::Linear does not have");
  EXPECT_EQ(report.at("7").reason, "torch::nn::Flatten saves no activation for backward");
  EXPECT_EQ(report.at("8").reason, "already compressed");
  EXPECT_EQ(report.at("9").reason, "torch::nn::AdaptiveMaxPool2d has no compressed form");
}

TEST(ConvertTree, ARootLayerIsReported) {
  torch::nn::Linear root(3, 3);
  const auto report = actnn::nn::convert(root);
  ASSERT_EQ(report.entries.size(), 1U);
  EXPECT_EQ(
      report.at("").reason,
      "the root itself cannot be replaced through a reference; convert the container or AnyModule that holds it, or "
      "use actnn::nn::Linear");
}

TEST(ConvertTree, RefusesANullRoot) {
  EXPECT_THROW(actnn::nn::convert(std::shared_ptr<torch::nn::Module>()), c10::ValueError);
}

TEST(ConversionReport, PrintsATable) {
  Sequential model(torch::nn::Conv2d(3, 4, 3), torch::nn::Dropout2d());
  EXPECT_EQ(actnn::nn::convert(model).to_string(),
            "1 converted, 1 left alone, of 3 modules\n"
            "  (root)  torch::nn::Sequential  no chain: 0: no layer beside it can be in a chain with it; 1: "
            "torch::nn::Dropout2d has no part in chains\n"
            "  0       torch::nn::Conv2d      -> actnn::nn::Conv2d\n"
            "  1       torch::nn::Dropout2d   left alone: torch::nn::Dropout2d has no compressed form\n");
}

TEST(ConversionReport, RefusesUnknownPaths) { EXPECT_THROW(actnn::nn::ConversionReport().at("0"), c10::ValueError); }

}  // namespace
