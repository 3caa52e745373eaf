// Products, pools and means, one step or a few, against torch's.
#include <string>
#include <vector>

#include "tests/cpp/blocks/step_comparison.h"

namespace actnn::blocks {
namespace {

class LinearSteps : public StepComparison {};
class LinearStepsThatSaveNothing : public StepComparison {};

TEST_P(LinearSteps, AreTorchs) { compare_in_all_formats(GetParam()); }
TEST_P(LinearStepsThatSaveNothing, SaveNothing) { expect_saves_nothing(GetParam()); }

auto torch_convolution(const List& stride, const List& padding, const List& dilation, int64_t groups,
                       bool transposed = false, const List& output_padding = {0, 0, 0}) {
  return [=](const Tensors& x, const Tensors& p) {
    const c10::IntArrayRef outside(output_padding.data(), stride.size());
    return Tensors{at::convolution(x[0], p[0], p.size() > 1 ? std::optional(p[1]) : std::nullopt, stride, padding,
                                   dilation, transposed, outside, groups)};
  };
}

std::vector<Case> products() {
  return {
      {.name = "Convolution1d",
       .inputs = {{3, 4, 17}},
       .steps = step("convolution", R"("weight": 0, "bias": 1, "stride": [2], "padding": [1], "dilation": [1])"),
       .results = {1},
       .expected = torch_convolution({2}, {1}, {1}, 1),
       .parameters = {{6, 4, 3}, {6}}},
      {.name = "Convolution2dOfGroups",
       .inputs = {{2, 6, 9, 7}},
       .steps =
           step("convolution", R"("weight": 0, "stride": [1, 2], "padding": [0, 1], "dilation": [2, 1], "groups": 3)"),
       .results = {1},
       .expected = torch_convolution({1, 2}, {0, 1}, {2, 1}, 3),
       .parameters = {{9, 2, 3, 2}}},
      {.name = "Convolution3d",
       .inputs = {{2, 3, 5, 6, 7}},
       .steps = step("convolution",
                     R"("weight": 0, "bias": 1, "stride": [1, 2, 1], "padding": [1, 0, 1], "dilation": [1, 1, 2])"),
       .results = {1},
       .expected = torch_convolution({1, 2, 1}, {1, 0, 1}, {1, 1, 2}, 1),
       .parameters = {{4, 3, 3, 2, 3}, {4}}},
      {.name = "TransposedConvolution1d",
       .inputs = {{3, 4, 7}},
       .steps = step("convolution", R"("weight": 0, "stride": [3], "padding": [1], "dilation": [1], "transposed": true,
                                       "output_padding": [2])"),
       .results = {1},
       .expected = torch_convolution({3}, {1}, {1}, 1, true, {2}),
       .parameters = {{4, 5, 4}}},
      {.name = "TransposedConvolution2dOfGroups",
       .inputs = {{2, 4, 5, 6}},
       .steps = step("convolution", R"("weight": 0, "bias": 1, "stride": [2, 1], "padding": [1, 0], "dilation": [1, 2],
                                       "groups": 2, "transposed": true, "output_padding": [1, 0])"),
       .results = {1},
       .expected = torch_convolution({2, 1}, {1, 0}, {1, 2}, 2, true, {1, 0}),
       .parameters = {{4, 3, 3, 2}, {6}}},
      {.name = "LinearOfVector",
       .inputs = {{7}},
       .steps = step("linear", R"("weight": 0, "bias": 1)"),
       .results = {1},
       .expected = [](const Tensors& x, const Tensors& p) { return Tensors{at::linear(x[0], p[0], p[1])}; },
       .parameters = {{5, 7}, {5}}},
      {.name = "LinearOfManyDimensions",
       .inputs = {{2, 3, 5, 9}},
       .steps = step("linear", R"("weight": 0)"),
       .results = {1},
       .expected = [](const Tensors& x, const Tensors& p) { return Tensors{at::linear(x[0], p[0])}; },
       .parameters = {{4, 9}}},
      {.name = "NetworkOfSeveralSteps",
       .inputs = {{4, 6, 9, 11}},
       .steps = R"({"op": "avg_pool", "inputs": [0], "kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1]},
                   {"op": "chunk", "inputs": [1], "chunks": 2, "dimension": 1},
                   {"op": "convolution", "inputs": [2], "weight": 0, "stride": [2, 2], "padding": [1, 1],
                    "dilation": [1, 1]},
                   {"op": "upsample", "inputs": [4], "mode": "nearest", "size": [9, 11]},
                   {"op": "concatenate", "inputs": [5, 3, 0], "dimension": 1},
                   {"op": "max_pool", "inputs": [6], "kernel_size": [2, 2], "stride": [2, 2], "padding": [0, 0],
                    "dilation": [1, 1], "ceil_mode": true},
                   {"op": "adaptive_avg_pool", "inputs": [7], "output_size": [1, 1]},
                   {"op": "flatten", "inputs": [8], "start": 1, "end": -1},
                   {"op": "linear", "inputs": [9], "weight": 1})",
       .results = {10},
       .expected =
           [](const Tensors& x, const Tensors& p) {
             const Tensors halves = at::avg_pool2d(x[0], {3, 3}, {1, 1}, {1, 1}).chunk(2, 1);
             const at::Tensor low = at::conv2d(halves[0], p[0], {}, {2, 2}, {1, 1});
             const at::Tensor all = at::cat({at::upsample_nearest2d(low, {9, 11}), halves[1], x[0]}, 1);
             const at::Tensor pooled = at::max_pool2d(all, {2, 2}, {2, 2}, {0, 0}, {1, 1}, true);
             return Tensors{at::linear(at::adaptive_avg_pool2d(pooled, {1, 1}).flatten(1), p[1])};
           },
       .parameters = {{5, 3, 3, 3}, {2, 14}}},
  };
}

std::vector<Case> max_pools() {
  return {
      {.name = "MaxPool1d",
       .inputs = {{2, 3, 13}},
       .steps = step("max_pool", R"("kernel_size": [3], "stride": [2], "padding": [1], "dilation": [2])"),
       .results = {1},
       .expected = of_input([](const at::Tensor& x) { return at::max_pool1d(x, 3, 2, 1, 2); }),
       .exactness = Exactness::kEqual},
      {.name = "MaxPool2dInCeilMode",
       .inputs = {{2, 3, 10, 7}},
       .steps = step("max_pool", R"("kernel_size": [3, 2], "stride": [2, 3], "padding": [1, 0], "dilation": [1, 2],
                                    "ceil_mode": true)"),
       .results = {1},
       .expected = of_input([](const at::Tensor& x) {
         return at::max_pool2d(x, {3, 2}, {2, 3}, {1, 0}, {1, 2}, true);
       })},
      {.name = "MaxPool2dOfOnePixel",
       .inputs = {{2, 3, 1, 1}},
       .steps = step("max_pool", R"("kernel_size": [2, 2], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1])"),
       .results = {1},
       .expected = of_input([](const at::Tensor& x) {
         return at::max_pool2d(x, {2, 2}, {1, 1}, {1, 1});
       })},
      {.name = "MaxPool3d",
       .inputs = {{2, 3, 5, 6, 7}},
       .steps = step("max_pool", R"("kernel_size": [2, 3, 2], "stride": [2, 2, 3], "padding": [1, 1, 0],
                                    "dilation": [1, 1, 2], "ceil_mode": true)"),
       .results = {1},
       .expected = of_input([](const at::Tensor& x) {
         return at::max_pool3d(x, {2, 3, 2}, {2, 2, 3}, {1, 1, 0}, {1, 1, 2}, true);
       })},
  };
}

std::vector<Case> means() {
  return {
      {.name = "AvgPool1d",
       .inputs = {{2, 3, 14}},
       .steps = step("avg_pool", R"("kernel_size": [3], "stride": [2], "padding": [1], "ceil_mode": true)"),
       .results = {1},
       .expected = of_input([](const at::Tensor& x) { return at::avg_pool1d(x, 3, 2, 1, true); })},
      {.name = "AvgPool2dWithoutPadding",
       .inputs = {{2, 3, 9, 8}},
       .steps = step("avg_pool", R"("kernel_size": [3, 2], "stride": [2, 1], "padding": [1, 0], "ceil_mode": true,
                                    "count_include_pad": false)"),
       .results = {1},
       .expected = of_input([](const at::Tensor& x) {
         return at::avg_pool2d(x, {3, 2}, {2, 1}, {1, 0}, true, false);
       })},
      {.name = "AvgPool3dByAnotherDivisor",
       .inputs = {{2, 3, 5, 6, 7}},
       .steps = step("avg_pool", R"("kernel_size": [2, 3, 2], "stride": [1, 2, 2], "padding": [1, 0, 1],
                                    "divisor_override": 5)"),
       .results = {1},
       .expected = of_input([](const at::Tensor& x) {
         return at::avg_pool3d(x, {2, 3, 2}, {1, 2, 2}, {1, 0, 1}, false, true, 5);
       }),
       .in_float_only = true},
      {.name = "AdaptiveAvgPool1d",
       .inputs = {{2, 3, 11}},
       .steps = step("adaptive_avg_pool", R"("output_size": [4])"),
       .results = {1},
       .expected = of_input([](const at::Tensor& x) { return at::adaptive_avg_pool1d(x, 4); })},
      {.name = "AdaptiveAvgPool2d",
       .inputs = {{2, 3, 7, 5}},
       .steps = step("adaptive_avg_pool", R"("output_size": [3, 1])"),
       .results = {1},
       .expected = of_input([](const at::Tensor& x) {
         return at::adaptive_avg_pool2d(x, {3, 1});
       })},
      {.name = "GlobalAvgPool2d",
       .inputs = {{2, 3, 7, 5}},
       .steps = step("adaptive_avg_pool", R"("output_size": [1, 1])"),
       .results = {1},
       .expected = of_input([](const at::Tensor& x) {
         return at::adaptive_avg_pool2d(x, {1, 1});
       })},
      {.name = "AdaptiveAvgPool3d",
       .inputs = {{2, 3, 4, 7, 5}},
       .steps = step("adaptive_avg_pool", R"("output_size": [2, 3, 2])"),
       .results = {1},
       .expected = of_input([](const at::Tensor& x) {
         return at::adaptive_avg_pool3d(x, {2, 3, 2});
       })},
      {.name = "MeanOfSomeDimensions",
       .inputs = {{2, 3, 5, 7}},
       .steps = step("mean", R"("dimensions": [1, -1])"),
       .results = {1},
       .expected = of_input([](const at::Tensor& x) {
         return x.mean({1, 3});
       })},
      {.name = "MeanThatKeepsDimensions",
       .inputs = {{2, 3, 5, 7}},
       .steps = step("mean", R"("dimensions": [2, 3], "keepdim": true)"),
       .results = {1},
       .expected = of_input([](const at::Tensor& x) {
         return x.mean({2, 3}, true);
       })},
  };
}

INSTANTIATE_TEST_SUITE_P(Products, LinearSteps, testing::ValuesIn(products()), case_name);
INSTANTIATE_TEST_SUITE_P(MaxPools, LinearSteps, testing::ValuesIn(max_pools()), case_name);
INSTANTIATE_TEST_SUITE_P(Means, LinearSteps, testing::ValuesIn(means()), case_name);
INSTANTIATE_TEST_SUITE_P(Means, LinearStepsThatSaveNothing, testing::ValuesIn(means()), case_name);

/// A program of one product, whose weight is not trained.
void expect_frozen(const std::string& product, const at::Tensor& input, const at::Tensor& weight, bool trains_input) {
  SCOPED_TRACE(product + (trains_input ? " that trains its input" : " that trains its bias"));
  const at::Tensor x = input.detach().requires_grad_(trains_input);
  const at::Tensor bias = at::randn({weight.size(0)}).requires_grad_(!trains_input);
  const Block block(plan_from_json(R"({"program": {"inputs": 1, "results": [1], "steps": [)" + product + "]}}"));
  const Tensors leaves{trains_input ? x : bias};
  const Tensors results = block.run({x}, {weight, bias}, {});
  EXPECT_EQ(block.saved_bytes(), 0);
  const at::Tensor expected = weight.dim() == 2 ? at::linear(x, weight, bias) : at::conv2d(x, weight, bias);
  const Tensors cotangents{at::randn(expected.sizes(), at::kDouble)};
  const at::Tensor grad = gradients(results, cotangents, leaves)[0];
  expect_same(grad, gradients({expected}, cotangents, leaves)[0], Exactness::kRounded);
}

TEST(BlockProducts, SaveNothingForAFrozenWeight) {
  for (const bool trains_input : {false, true}) {
    expect_frozen(
        step("convolution", R"("weight": 0, "bias": 1, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1])"),
        at::randn({2, 3, 7, 5}), at::randn({4, 3, 3, 2}), trains_input);
    expect_frozen(step("linear", R"("weight": 0, "bias": 1)"), at::randn({2, 3, 5}), at::randn({4, 5}), trains_input);
  }
}

TEST(BlockStepErrors, AreSentences) {
  const auto add = [](const std::string& steps) {
    return plan_from_json(R"({"program": {"inputs": 1, "results": [1], "steps": [)" + steps + "]}}");
  };
  for (const std::string& wrong : {
           step("convolution", R"("weight": 0, "stride": [1, 1], "padding": [0], "dilation": [1, 1])"),
           step("convolution", R"("weight": 0, "stride": [1], "padding": [0], "dilation": [1], "output_padding": [1])"),
           step("max_pool", R"("kernel_size": [], "stride": [], "padding": [], "dilation": [])"),
           step("avg_pool", R"("kernel_size": [2], "stride": [0], "padding": [0])"),
           step("upsample", R"("mode": "bilinear", "size": [4])"),
           step("upsample", R"("mode": "nearest")"),
           step("permute", R"("dimensions": [0, 0])"),
           step("split", R"("sizes": [], "dimension": 0)"),
       }) {
    EXPECT_THROW(add(wrong), c10::ValueError) << wrong;
  }
}

TEST(BlockStepErrors, NameSizesThatDoNotFit) {
  const auto run = [](const std::string& steps, const std::string& results, const at::Tensor& input) {
    return Block(
               plan_from_json(R"({"program": {"inputs": 1, "steps": [)" + steps + R"(], "results": )" + results + "}}"))
        .run({input}, {}, {});
  };
  EXPECT_THROW(run(step("chunk", R"("chunks": 4, "dimension": 0)"), "[1, 2, 3, 4]", at::randn({5, 2})),
               c10::ValueError);
  EXPECT_THROW(run(step("split", R"("sizes": [2, 2], "dimension": 0)"), "[1, 2]", at::randn({5, 2})), c10::ValueError);
}

}  // namespace
}  // namespace actnn::blocks
