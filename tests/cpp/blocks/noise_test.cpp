// What copies add to the noise of gradients, and the bits that follow.
#include "actnn/blocks/noise.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "actnn/blocks/block.h"
#include "actnn/policy/gradient_noise.h"
#include "tests/cpp/blocks/program_texts.h"

namespace actnn::blocks {
namespace {

using Tensors = std::vector<at::Tensor>;

const std::string kLinear = R"({"inputs": 1, "results": [1], "steps": [
    {"op": "linear", "inputs": [0], "weight": 0}]})";
const std::string kMlp = R"({"inputs": 1, "results": [3], "steps": [
    {"op": "linear", "inputs": [0], "weight": 0},
    {"op": "activation", "inputs": [1], "kind": "gelu"},
    {"op": "linear", "inputs": [2], "weight": 1}]})";

Block block_of(const std::string& program, const std::string& name, const std::string& options = "{}") {
  return Block(
      plan_from_json("{\"program\": " + program + ", \"options\": " + options + ", \"name\": \"" + name + "\"}"));
}

at::Tensor leaf(at::IntArrayRef size) { return at::randn(size).requires_grad_(); }

/// Gradients of `parameters` of a loss whose gradient is `grad`.
Tensors gradients(const at::Tensor& result, const at::Tensor& grad, const Tensors& parameters) {
  return torch::autograd::grad({result}, parameters, {grad});
}

struct Measured {
  double predicted;
  double actual;
  std::vector<ValueNoise> values;
};

/// The noise of what `run` computes, predicted, and measured over draws. A batch norm's is in few directions, so that
/// single passes differ.
Measured compare(const std::function<Tensors()>& run, int64_t draws = 48, int64_t passes = 8) {
  const auto noise = c10::make_intrusive<BlockNoise>();
  for (int64_t pass = 0; pass < passes; ++pass) {
    EXPECT_TRUE(noise->start());
    EXPECT_TRUE(noise->finish(run()));
  }
  GradientNoise measured;
  for (int64_t draw = 0; draw < draws; ++draw) {
    measured.add(run());
  }
  std::vector<int64_t> bits;
  for (const ValueNoise& value : noise->values()) {
    bits.push_back(value.bits);
  }
  return {noise->noise(bits), measured.noise(), noise->values()};
}

TEST(BlockNoise, OfALinearLayerIsThatOfItsFormula) {
  const at::Tensor x = at::rand({64, 256});  // a group a column, of a range of nearly 1
  const at::Tensor weight = leaf({16, 256});
  const at::Tensor grad = at::randn({64, 16}) * at::linspace(0.1, 3, 64).unsqueeze(1);
  const Block block = block_of(kLinear, "linear", R"({"bits": 4})");
  const Measured found = compare([&] { return gradients(block.run({x}, {weight}, {})[0], grad, {weight}); });
  ASSERT_EQ(found.values.size(), 1);
  const ValueNoise& value = found.values[0];
  EXPECT_EQ(value.block, "linear");
  EXPECT_EQ(value.value, Value{0});
  EXPECT_EQ(value.bits, 4);
  EXPECT_EQ(value.elements, 64 * 256);
  // Range^2 / 12, of each element, times the gradients that it meets.
  EXPECT_NEAR(value.sensitivity / (256 * grad.square().sum().item<double>() / 12), 1.0, 0.1);
  EXPECT_NEAR(found.predicted / found.actual, 1.0, 0.1);
}

TEST(BlockNoise, OfAResidualBlockIsWhatIsMeasured) {
  const at::Tensor x = at::randn({4, 8, 6, 6});
  const Tensors parameters{leaf({8, 8, 3, 3}), leaf({8}), leaf({8}), leaf({8, 8, 3, 3}), leaf({8}), leaf({8})};
  const Tensors buffers{at::zeros({8}), at::ones({8}), at::zeros({8}), at::ones({8})};
  const at::Tensor grad = at::randn(x.sizes());
  for (const char* options :
       {R"({"bits": 4})", R"({"bits": 4, "recompute": false})", R"({"bits": 4, "rounding": "stochastic"})"}) {
    const Block block = block_of(kResidualBlock, "block", options);
    const Measured found = compare([&] { return gradients(block.run({x}, parameters, buffers)[0], grad, parameters); });
    EXPECT_NEAR(found.predicted / found.actual, 1.0, 0.3) << options;
  }
}

TEST(BlockNoise, FollowsNoiseThroughTheBlocksInFront) {
  const at::Tensor x = at::randn({64, 24});
  Tensors parameters{leaf({24, 24}), leaf({48, 24}), leaf({24, 48})};
  const at::Tensor grad = at::randn({64, 24});
  const Block first = block_of(kLinear, "first", R"({"bits": 8})");
  const Block second = block_of(kMlp, "second", R"({"bits": 8, "value_bits": {"1": 4}})");
  const Measured found = compare([&] {
    const at::Tensor middle = first.run({x}, {parameters[0]}, {})[0];
    const at::Tensor end = second.run({middle.view({8, 8, 24})}, {parameters[1], parameters[2]}, {})[0];
    return gradients(end.view({64, 24}), grad, parameters);
  });
  EXPECT_NEAR(found.predicted / found.actual, 1.0, 0.3);
  // Of the copy that GELU is computed from, noise is in the first weight's gradient, too.
  const Measured alone = compare([&] {
    const at::Tensor middle = first.run({x}, {parameters[0]}, {})[0].detach();
    const at::Tensor end = second.run({middle}, {parameters[1], parameters[2]}, {})[0];
    return gradients(end, grad, {parameters[1], parameters[2]});
  });
  const auto variance = [](const Measured& measured) {
    for (const ValueNoise& value : measured.values) {
      if (value.block == "second" && value.value == Value{1}) {
        return value.sensitivity;
      }
    }
    return 0.0;
  };
  EXPECT_GT(variance(found), 1.02 * variance(alone));
}

TEST(BlockNoise, CountsACopyThatAnotherBlockReadsForWhoMadeIt) {
  const at::Tensor x = at::randn({4, 8, 6, 6});
  const Tensors parameters{leaf({8, 8, 3, 3}), leaf({8}), leaf({8}),         leaf({8, 8, 3, 3}),
                           leaf({8}),          leaf({8}), leaf({8, 8, 3, 3})};
  const Tensors buffers{at::zeros({8}), at::ones({8}), at::zeros({8}), at::ones({8})};
  const std::string convolution = R"({"inputs": 1, "results": [1], "steps": [
      {"op": "convolution", "inputs": [0], "weight": 0, "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}]})";
  const at::Tensor grad = at::randn(x.sizes());
  const Block first = block_of(kResidualBlock, "first");
  const Block second = block_of(convolution, "second");
  const Measured found = compare([&] {
    const at::Tensor middle = first.run({x}, {parameters.begin(), parameters.begin() + 6}, buffers)[0];
    return gradients(second.run({middle}, {parameters[6]}, {})[0], grad, parameters);
  });
  for (const ValueNoise& value : found.values) {
    EXPECT_EQ(value.block, "first");
  }
  EXPECT_NEAR(found.predicted / found.actual, 1.0, 0.3);
}

TEST(BlockNoise, LeavesGradientsAsTheyAre) {
  const at::Tensor x = at::randn({16, 24});
  const Tensors parameters{leaf({48, 24}), leaf({24, 48})};
  const at::Tensor grad = at::randn({16, 24});
  const Block block = block_of(kMlp, "mlp");
  const at::Tensor result = block.run({x}, parameters, {})[0];
  const auto noise = c10::make_intrusive<BlockNoise>();
  ASSERT_TRUE(noise->start());
  at::manual_seed(3);
  const Tensors measured = gradients(block.run({x}, parameters, {})[0], grad, parameters);
  EXPECT_TRUE(noise->finish(measured));
  at::manual_seed(3);
  const Tensors plain = gradients(block.run({x}, parameters, {})[0], grad, parameters);
  for (size_t place = 0; place < plain.size(); ++place) {
    EXPECT_TRUE(measured[place].equal(plain[place]));
  }
}

TEST(BlockNoise, MeasuresOnlyBlocksOfItsNames) {
  const at::Tensor x = at::randn({16, 8});
  const at::Tensor weight = leaf({4, 8});
  const at::Tensor grad = at::randn({16, 4});
  const Block block = block_of(kLinear, "1/linear");
  const auto noise = c10::make_intrusive<BlockNoise>();
  const auto other = c10::make_intrusive<BlockNoise>();
  ASSERT_TRUE(noise->start({"11/", "2/"}));
  EXPECT_FALSE(other->start());
  EXPECT_FALSE(noise->finish(gradients(block.run({x}, {weight}, {})[0], grad, {weight})));
  ASSERT_TRUE(other->start({"2/", "1/"}));
  EXPECT_TRUE(other->finish(gradients(block.run({x}, {weight}, {})[0], grad, {weight})));
  EXPECT_EQ(other->values().size(), 1);
  EXPECT_THROW(other->finish({}), c10::ValueError);
}

TEST(BlockNoise, PassesWithoutAFiniteGradientDoNotCount) {
  const at::Tensor x = at::randn({16, 8});
  const at::Tensor weight = leaf({4, 8});
  const Block block = block_of(kLinear, "linear");
  const auto noise = c10::make_intrusive<BlockNoise>();
  for (const double size : {0.0, std::numeric_limits<double>::infinity()}) {
    ASSERT_TRUE(noise->start());
    const at::Tensor grad = at::full({16, 4}, size);
    EXPECT_FALSE(noise->finish(gradients(block.run({x}, {weight}, {})[0], grad, {weight})));
  }
  EXPECT_EQ(noise->passes(), 0);
  EXPECT_TRUE(noise->bits_for_noise(0.1).empty());
}

TEST(BlockNoise, GivesBitsForNoiseAndForBytes) {
  const at::Tensor x = at::randn({4, 8, 6, 6});
  const Tensors parameters{leaf({8, 8, 3, 3}), leaf({8}), leaf({8}), leaf({8, 8, 3, 3}), leaf({8}), leaf({8})};
  const Tensors buffers{at::zeros({8}), at::ones({8}), at::zeros({8}), at::ones({8})};
  const Block block = block_of(kResidualBlock, "block");
  const auto noise = c10::make_intrusive<BlockNoise>();
  ASSERT_TRUE(noise->start());
  EXPECT_TRUE(noise->finish(gradients(block.run({x}, parameters, buffers)[0], at::randn(x.sizes()), parameters)));
  const std::vector<ValueNoise> values = noise->values();
  std::vector<int64_t> bits;
  for (const ValueNoise& value : values) {
    bits.push_back(value.bits);
    // The first value is a convolution's input, the second is computed again from.
    EXPECT_EQ(value.fewest, value.value == Value{3} ? 3 : 2);
    EXPECT_EQ(value.side, value.value == Value{0} ? 0 : 1);
  }
  EXPECT_NEAR(static_cast<double>(noise->kept_bytes(bits)), static_cast<double>(block.saved_bytes()), 8);
  for (const double target : {1.0, 0.1, 0.01, 0.001}) {
    const std::vector<int64_t> fewest = noise->bits_for_noise(target);
    EXPECT_LE(noise->noise(fewest), target);
    // With as many bytes no other bits have less noise.
    EXPECT_LE(noise->noise(noise->bits_for_bytes(noise->kept_bytes(fewest))), noise->noise(fewest) * (1 + 1e-9));
  }
  const std::vector<int64_t> finest = noise->bits_for_noise(1e-9);
  EXPECT_EQ(finest, std::vector<int64_t>(values.size(), 8));
  const std::vector<int64_t> coarsest = noise->bits_for_bytes(1);
  for (size_t place = 0; place < values.size(); ++place) {
    EXPECT_EQ(coarsest[place], values[place].fewest);
  }
}

}  // namespace
}  // namespace actnn::blocks
