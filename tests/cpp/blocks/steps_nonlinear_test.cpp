// Steps that are no matrix products and no views, each as a program of its own: results are torch's, gradients torch's,
// exactly where what is saved is exact, and up to the noise of 8 bits where it is a copy.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

#include "actnn/blocks/block.h"
#include "src/blocks/steps/activation.h"
#include "src/blocks/steps/attention.h"
#include "src/blocks/steps/dropout.h"
#include "src/blocks/steps/group_norm.h"
#include "src/blocks/steps/instance_norm.h"
#include "src/blocks/steps/layer_norm.h"
#include "src/blocks/steps/multiply.h"
#include "src/blocks/steps/rms_norm.h"

namespace actnn::blocks {
namespace {

using Tensors = std::vector<at::Tensor>;

constexpr double kExact = 0.0;
constexpr double kCopy = 0.02;  // relative error of a gradient that a copy of 8 bits is in

struct StepCase {
  std::string name;
  std::function<std::shared_ptr<Step>()> step;
  std::vector<std::vector<int64_t>> inputs;
  std::vector<std::vector<int64_t>> parameters;
  std::function<at::Tensor(const Tensors& inputs, const Tensors& parameters)> torchs;
  double error;  // of gradients
};

std::ostream& operator<<(std::ostream& out, const StepCase& step_case) { return out << step_case.name; }

Program program_of(std::shared_ptr<Step> step, size_t inputs) {
  Program program;
  program.inputs = static_cast<int64_t>(inputs);
  step->inputs.clear();
  for (size_t number = 0; number < inputs; ++number) {
    step->inputs.push_back(Value{static_cast<int64_t>(number)});
  }
  program.results = {program.add(std::move(step))};
  return program;
}

Tensors leaves(const std::vector<std::vector<int64_t>>& sizes, at::ScalarType dtype) {
  Tensors result;
  for (const std::vector<int64_t>& size : sizes) {
    result.push_back(at::randn(size).mul_(1.5).add_(0.3).to(dtype).requires_grad_());
  }
  return result;
}

Tensors gradients(const at::Tensor& result, const at::Tensor& grad, Tensors inputs, const Tensors& parameters) {
  inputs.insert(inputs.end(), parameters.begin(), parameters.end());
  return torch::autograd::grad({result}, inputs, {grad});
}

double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  const at::Tensor exact = expected.detach().to(at::kDouble);
  return ((actual.detach().to(at::kDouble) - exact).norm() / exact.norm().clamp_min(1e-12)).item<double>();
}

class StepTest : public testing::TestWithParam<std::tuple<StepCase, at::ScalarType>> {};

TEST_P(StepTest, ResultAndGradientsAreTorchs) {
  const auto& [step_case, dtype] = GetParam();
  at::set_num_threads(1);
  const Tensors inputs = leaves(step_case.inputs, dtype);
  const Tensors parameters = leaves(step_case.parameters, dtype);
  const at::Tensor expected = step_case.torchs(inputs, parameters);
  const at::Tensor grad = at::randn(expected.sizes()).to(dtype);
  const Tensors expected_gradients = gradients(expected, grad, inputs, parameters);

  const double rounding = dtype == at::kFloat ? 1e-5 : 1e-2;
  const Block block(program_of(step_case.step(), inputs.size()), {.bits = 8});
  const at::Tensor actual = block.run(inputs, parameters, {})[0];
  ASSERT_EQ(actual.sizes(), expected.sizes());
  ASSERT_EQ(actual.scalar_type(), expected.scalar_type());
  EXPECT_LE(relative_error(actual, expected), rounding);
  const Tensors actual_gradients = gradients(actual, grad, inputs, parameters);
  ASSERT_EQ(actual_gradients.size(), expected_gradients.size());
  for (size_t number = 0; number < expected_gradients.size(); ++number) {
    EXPECT_EQ(actual_gradients[number].sizes(), expected_gradients[number].sizes()) << number;
    EXPECT_EQ(actual_gradients[number].scalar_type(), expected_gradients[number].scalar_type()) << number;
    EXPECT_LE(relative_error(actual_gradients[number], expected_gradients[number]), step_case.error + rounding)
        << number;
  }
}

template <class Kind>
std::function<std::shared_ptr<Step>()> with(const std::function<void(Kind&)>& set) {
  return [set] {
    auto step = std::make_shared<Kind>();
    set(*step);
    return step;
  };
}

StepCase activation_case(ActivationKind kind, const std::function<at::Tensor(const at::Tensor&)>& torchs,
                         double error) {
  return {.name = name_of(kind),
          .step = with<Activation>([kind](Activation& step) {
            step.kind = kind;
            step.slope = 0.2;
          }),
          .inputs = {{3, 5, 7, 9}},
          .parameters = {},
          .torchs = [torchs](const Tensors& inputs, const Tensors&) { return torchs(inputs[0]); },
          .error = error};
}

std::vector<StepCase> activation_cases() {
  return {activation_case(
              ActivationKind::kReLU, [](const at::Tensor& x) { return at::relu(x); }, kExact),
          activation_case(
              ActivationKind::kReLU6, [](const at::Tensor& x) { return at::hardtanh(x, 0, 6); }, kExact),
          activation_case(
              ActivationKind::kLeakyReLU, [](const at::Tensor& x) { return at::leaky_relu(x, 0.2); }, kExact),
          activation_case(
              ActivationKind::kSiLU, [](const at::Tensor& x) { return at::silu(x); }, kCopy),
          activation_case(
              ActivationKind::kHardswish, [](const at::Tensor& x) { return at::hardswish(x); }, kCopy),
          activation_case(
              ActivationKind::kGELU, [](const at::Tensor& x) { return at::gelu(x); }, kCopy),
          activation_case(
              ActivationKind::kGELUTanh, [](const at::Tensor& x) { return at::gelu(x, "tanh"); }, kCopy),
          activation_case(
              ActivationKind::kSigmoid, [](const at::Tensor& x) { return at::sigmoid(x); }, kCopy),
          activation_case(
              ActivationKind::kTanh, [](const at::Tensor& x) { return at::tanh(x); }, kCopy)};
}

constexpr ParameterIndex kWeight{0};
constexpr ParameterIndex kBias{1};

std::vector<StepCase> norm_cases() {
  return {
      {.name = "layer_norm",
       .step = with<LayerNorm>([](LayerNorm& step) {
         step.weight = kWeight;
         step.bias = kBias;
       }),
       .inputs = {{5, 7, 33}},
       .parameters = {{33}, {33}},
       .torchs = [](const Tensors& x, const Tensors& p) { return at::layer_norm(x[0], {33}, p[0], p[1]); },
       .error = kCopy},
      {.name = "layer_norm_over_two_dimensions",
       .step = with<LayerNorm>([](LayerNorm& step) { step.dimensions = 2; }),
       .inputs = {{5, 7, 33}},
       .parameters = {},
       .torchs =
           [](const Tensors& x, const Tensors&) {
             return at::layer_norm(x[0], {7, 33});
           },
       .error = kCopy},
      {.name = "rms_norm",
       .step = with<RmsNorm>([](RmsNorm& step) { step.weight = kWeight; }),
       .inputs = {{5, 7, 33}},
       .parameters = {{33}},
       .torchs = [](const Tensors& x, const Tensors& p) { return at::rms_norm(x[0], {33}, p[0]); },
       .error = kCopy},
      {.name = "group_norm",
       .step = with<GroupNorm>([](GroupNorm& step) {
         step.weight = kWeight;
         step.bias = kBias;
         step.groups = 3;
       }),
       .inputs = {{3, 6, 5, 7}},
       .parameters = {{6}, {6}},
       .torchs = [](const Tensors& x, const Tensors& p) { return at::group_norm(x[0], 3, p[0], p[1]); },
       .error = kCopy},
      {.name = "group_norm_of_one_dimension",
       .step = with<GroupNorm>([](GroupNorm& step) { step.groups = 2; }),
       .inputs = {{3, 6, 11}},
       .parameters = {},
       .torchs = [](const Tensors& x, const Tensors&) { return at::group_norm(x[0], 2); },
       .error = kCopy},
      {.name = "instance_norm",
       .step = with<InstanceNorm>([](InstanceNorm& step) {
         step.weight = kWeight;
         step.bias = kBias;
       }),
       .inputs = {{3, 6, 5, 7}},
       .parameters = {{6}, {6}},
       .torchs = [](const Tensors& x,
                    const Tensors& p) { return at::instance_norm(x[0], p[0], p[1], {}, {}, true, 0.1, 1e-5, false); },
       .error = kCopy}};
}

StepCase multiply_case(const std::string& name, const std::vector<int64_t>& second) {
  return {.name = name,
          .step = with<Multiply>([](Multiply&) {}),
          .inputs = {{3, 5, 7, 9}, second},
          .parameters = {},
          .torchs = [](const Tensors& x, const Tensors&) { return x[0] * x[1]; },
          .error = kCopy};
}

std::vector<StepCase> multiply_cases() {
  return {multiply_case("multiply", {3, 5, 7, 9}), multiply_case("multiply_by_a_gate", {3, 5, 1, 1}),
          multiply_case("multiply_by_fewer_dimensions", {9})};
}

StepCase attention_case(const std::string& name, const std::function<void(Attention&)>& set,
                        const std::vector<std::vector<int64_t>>& inputs) {
  Attention fields;
  set(fields);
  return {.name = name,
          .step = with<Attention>(set),
          .inputs = inputs,
          .parameters = {},
          .torchs =
              [fields](const Tensors& x, const Tensors&) {
                return at::scaled_dot_product_attention(x[0], x[1], x[2], {}, 0.0, fields.causal, fields.scale,
                                                        fields.grouped);
              },
          .error = kExact};
}

std::vector<StepCase> attention_cases() {
  return {attention_case("attention", [](Attention&) {}, {{2, 4, 5, 8}, {2, 4, 7, 8}, {2, 4, 7, 8}}),
          attention_case("causal_attention", [](Attention& step) { step.causal = true; },
                         {{2, 4, 7, 8}, {2, 4, 7, 8}, {2, 4, 7, 8}}),
          attention_case("grouped_attention",
                         [](Attention& step) {
                           step.grouped = true;
                           step.scale = 0.3;
                         },
                         {{2, 4, 5, 8}, {2, 2, 7, 8}, {2, 2, 7, 8}}),
          // What torch computes by products of matrices.
          attention_case("attention_of_three_dimensions", [](Attention& step) { step.causal = true; },
                         {{3, 5, 8}, {3, 5, 8}, {3, 5, 6}}),
          attention_case("attention_with_broadcast_keys", [](Attention& step) { step.scale = -0.3; },
                         {{2, 4, 5, 8}, {1, 4, 7, 8}, {2, 4, 7, 6}})};
}

auto both_types() { return testing::Values(at::kFloat, at::kBFloat16); }

std::string case_name(const testing::TestParamInfo<StepTest::ParamType>& info) {
  return std::get<0>(info.param).name + "_" + c10::toString(std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(Activations, StepTest, testing::Combine(testing::ValuesIn(activation_cases()), both_types()),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Norms, StepTest, testing::Combine(testing::ValuesIn(norm_cases()), both_types()), case_name);
INSTANTIATE_TEST_SUITE_P(Products, StepTest, testing::Combine(testing::ValuesIn(multiply_cases()), both_types()),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Attention, StepTest, testing::Combine(testing::ValuesIn(attention_cases()), both_types()),
                         case_name);

/// A program of one step with a value as both inputs.
TEST(MultiplyStep, SquaresAValue) {
  const Tensors x = leaves({{3, 129}}, at::kFloat);
  Program program;
  program.results = {program.add(std::make_shared<Multiply>(Value{0}, Value{0}))};
  const at::Tensor y = Block(program, {.bits = 8}).run(x, {}, {})[0];
  EXPECT_TRUE(y.equal(x[0] * x[0]));
  const at::Tensor grad = at::randn_like(y);
  EXPECT_LE(relative_error(gradients(y, grad, x, {})[0], 2 * x[0].detach() * grad), kCopy);
}

TEST(DropoutStep, DropsTheSameElementsOfTheGradient) {
  const at::Tensor x = at::ones({3, 5, 7, 9}).requires_grad_();
  const at::Tensor y = Block(program_of(std::make_shared<Dropout>(Value{0}, 0.25), 1)).run({x}, {}, {})[0];
  const double share = (y == 0).to(at::kDouble).mean().item<double>();
  EXPECT_NEAR(share, 0.25, 0.1);
  EXPECT_TRUE(at::logical_or(y == 0, y == static_cast<float>(1 / 0.75)).all().item<bool>());
  y.sum().backward();
  EXPECT_TRUE(x.grad().equal(y.detach()));
}

TEST(NormStep, SavesNothingForTheGradientOfABias) {
  const at::Tensor x = at::randn({64, 96});
  const at::Tensor bias = at::randn({96}).requires_grad_();
  auto norm = std::make_shared<LayerNorm>();
  norm->bias = ParameterIndex{0};
  const Block block(program_of(norm, 1));
  const at::Tensor y = block.run({x}, {bias}, {})[0];
  EXPECT_EQ(block.saved_bytes(), 0);
  const at::Tensor grad = at::randn_like(y);
  EXPECT_LE(relative_error(gradients(y, grad, {}, {bias})[0], grad.sum(0)), 1e-5);
}

TEST(NormStep, GradientsDoNotDependOnTheScaleOfTheInput) {
  // Features of units that differ by 10^6, which a copy of the input would drown.
  const at::Tensor scale = at::logspace(-3, 3, 48);
  const at::Tensor x = (at::randn({40, 48, 1}) * scale.view({1, 48, 1})).expand({40, 48, 9}).contiguous();
  const at::Tensor input = (x + at::randn_like(x) * scale.view({1, 48, 1})).requires_grad_();
  auto norm = std::make_shared<GroupNorm>();
  norm->groups = 48;
  const at::Tensor y = Block(program_of(norm, 1), {.bits = 8}).run({input}, {}, {})[0];
  const at::Tensor grad = at::randn_like(y);
  const at::Tensor expected = gradients(at::group_norm(input, 48), grad, {input}, {})[0];
  const at::Tensor actual = gradients(y, grad, {input}, {})[0];
  for (int64_t channel = 0; channel < 48; ++channel) {
    EXPECT_LE(relative_error(actual.select(1, channel), expected.select(1, channel)), kCopy) << channel;
  }
}

TEST(AttentionStep, TakesMasks) {
  const Tensors x = leaves({{2, 3, 5, 8}, {2, 3, 7, 8}, {2, 3, 7, 8}}, at::kFloat);
  at::Tensor seen = at::rand({5, 7}) > 0.4;
  seen.select(0, 2).fill_(false);  // a row that sees nothing
  for (const at::Tensor& mask : {seen, at::randn({2, 1, 5, 7}), at::rand({2, 1, 1, 7}) > 0.2}) {
    const at::Tensor expected = at::scaled_dot_product_attention(x[0], x[1], x[2], mask);
    const at::Tensor grad = at::randn_like(expected);
    const Block block(program_of(std::make_shared<Attention>(), 4));
    const at::Tensor actual = block.run({x[0], x[1], x[2], mask}, {}, {})[0];
    EXPECT_TRUE(actual.equal(expected));
    const Tensors expected_gradients = gradients(expected, grad, x, {});
    const Tensors actual_gradients = gradients(actual, grad, x, {});
    for (size_t number = 0; number < x.size(); ++number) {
      EXPECT_LE(relative_error(actual_gradients[number], expected_gradients[number]), 1e-5) << number;
    }
  }
}

TEST(AttentionStep, GivesAnAddedMaskItsGradient) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const Tensors x = leaves({{2, 3, 5, 8}, {2, 3, 7, 8}, {2, 3, 7, 8}}, dtype);
    for (const std::vector<int64_t>& size :
         std::vector<std::vector<int64_t>>{{5, 7}, {1, 3, 5, 7}, {2, 1, 5, 7}, {2, 3, 1, 7}, {2, 3, 5, 7}}) {
      const Tensors inputs{x[0], x[1], x[2], leaves({size}, dtype)[0]};
      const at::Tensor expected = at::scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], inputs[3]);
      const at::Tensor grad = at::randn_like(expected);
      const at::Tensor actual = Block(program_of(std::make_shared<Attention>(), 4)).run(inputs, {}, {})[0];
      const double error = dtype == at::kFloat ? 1e-5 : 1e-2;
      EXPECT_LE(relative_error(actual, expected), error);
      const Tensors expected_gradients = gradients(expected, grad, inputs, {});
      const Tensors actual_gradients = gradients(actual, grad, inputs, {});
      for (size_t number = 0; number < inputs.size(); ++number) {
        EXPECT_LE(relative_error(actual_gradients[number], expected_gradients[number]), error)
            << number << " of " << size;
      }
    }
  }
}

TEST(AttentionStep, GivesTheMaskAloneItsGradient) {
  const at::Tensor x = at::randn({2, 3, 5, 8});
  const at::Tensor mask = at::randn({3, 5, 5}).requires_grad_();
  const at::Tensor expected = at::scaled_dot_product_attention(x, x, x, mask);
  const at::Tensor grad = at::randn_like(expected);
  const at::Tensor actual = Block(program_of(std::make_shared<Attention>(), 4)).run({x, x, x, mask}, {}, {})[0];
  EXPECT_LE(relative_error(gradients(actual, grad, {mask}, {})[0], gradients(expected, grad, {mask}, {})[0]), 1e-5);
}

/// Six samples, three windows each of two pictures.
TEST(AttentionStep, RepeatsMasks) {
  const Tensors x = leaves({{6, 2, 5, 8}, {6, 2, 7, 8}, {6, 2, 7, 8}}, at::kFloat);
  const at::Tensor added = leaves({{3, 2, 5, 7}}, at::kFloat)[0];
  for (const at::Tensor& mask : {added, at::rand({3, 1, 5, 7}) > 0.3, leaves({{1, 2, 5, 7}}, at::kFloat)[0]}) {
    auto attention = std::make_shared<Attention>();
    attention->mask_repeats = true;
    const at::Tensor actual = Block(program_of(attention, 4)).run({x[0], x[1], x[2], mask}, {}, {})[0];
    const at::Tensor expected =
        at::scaled_dot_product_attention(x[0], x[1], x[2], mask.repeat({6 / mask.size(0), 1, 1, 1}));
    EXPECT_LE(relative_error(actual, expected), 1e-5);
    Tensors wanted = x;
    if (mask.requires_grad()) {
      wanted.push_back(mask);
    }
    const at::Tensor grad = at::randn_like(expected);
    const Tensors expected_gradients = gradients(expected, grad, wanted, {});
    const Tensors actual_gradients = gradients(actual, grad, wanted, {});
    for (size_t number = 0; number < wanted.size(); ++number) {
      EXPECT_LE(relative_error(actual_gradients[number], expected_gradients[number]), 1e-5) << number;
    }
  }
}

TEST(AttentionStep, RefusesMasksThatDoNotRepeat) {
  const at::Tensor x = at::randn({6, 2, 5, 8});
  auto attention = std::make_shared<Attention>();
  attention->mask_repeats = true;
  const Block block(program_of(attention, 4));
  for (const std::vector<int64_t>& size :
       std::vector<std::vector<int64_t>>{{5, 5}, {3, 5, 5}, {4, 2, 5, 5}, {12, 1, 5, 5}}) {
    EXPECT_THROW(block.run({x, x, x, at::randn(size)}, {}, {}), c10::ValueError) << size;
  }
}

TEST(AttentionStep, DropsTheSameWeightsInBackward) {
  auto attention = std::make_shared<Attention>();
  attention->probability = 0.3;
  const Block block(program_of(attention, 3));
  const Tensors x = leaves({{2, 3, 5, 8}, {2, 3, 7, 8}}, at::kFloat);
  // With the identity as values, the output is the weights themselves.
  const at::Tensor value = at::eye(7).expand({2, 3, 7, 7}).contiguous().requires_grad_();
  const at::Tensor dropped = block.run({x[0], x[1], value}, {}, {})[0];
  const at::Tensor weights = at::softmax(at::matmul(x[0], x[1].transpose(-2, -1)) / std::sqrt(8.0), -1);
  const at::Tensor expected = at::where(dropped.detach() == 0, at::zeros_like(weights), weights / 0.7);
  EXPECT_LE(relative_error(dropped, expected), 1e-5);
  EXPECT_GT((dropped == 0).sum().item<int64_t>(), 0);
  const at::Tensor grad = at::randn_like(dropped);
  const Tensors expected_gradients = gradients(expected, grad, x, {});
  const Tensors actual_gradients = gradients(dropped, grad, {x[0], x[1], value}, {});
  for (size_t number = 0; number < x.size(); ++number) {
    EXPECT_LE(relative_error(actual_gradients[number], expected_gradients[number]), 1e-5) << number;
  }
  EXPECT_LE(relative_error(actual_gradients[2], at::matmul(dropped.detach().transpose(-2, -1), grad)), 1e-5);
}

TEST(NonlinearStep, RefusesFieldsThatMakeNoSense) {
  auto attention = std::make_shared<Attention>();
  attention->causal = true;
  EXPECT_THROW(program_of(attention, 4), c10::ValueError);
  auto repeating = std::make_shared<Attention>();
  repeating->mask_repeats = true;
  EXPECT_THROW(program_of(repeating, 3), c10::ValueError);
  EXPECT_THROW(program_of(std::make_shared<Attention>(), 2), c10::ValueError);
  EXPECT_THROW(program_of(std::make_shared<Dropout>(Value{0}, 1.5), 1), c10::ValueError);
  EXPECT_THROW(program_of(std::make_shared<Multiply>(), 3), c10::ValueError);
  auto norm = std::make_shared<LayerNorm>();
  norm->dimensions = 0;
  EXPECT_THROW(program_of(norm, 1), c10::ValueError);
}

}  // namespace
}  // namespace actnn::blocks
