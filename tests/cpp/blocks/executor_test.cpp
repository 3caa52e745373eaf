// Running plans: results, gradients, memory, threads.
#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <string>
#include <thread>
#include <vector>

#include "actnn/blocks/block.h"
#include "tests/cpp/blocks/program_texts.h"
#include "tests/cpp/blocks/step_comparison.h"

namespace actnn::blocks {
namespace {

constexpr const char* kEightBits = R"({"bits": 8, "output_bits": 8, "norm_bits": 7})";

Block block_of(const std::string& program, const std::string& options = kEightBits) {
  return Block(plan_from_json("{\"program\": " + program + ", \"options\": " + options + "}"));
}

Tensors grad_of(const Tensors& results, const Tensors& leaves) {
  Tensors ones;
  for (const at::Tensor& result : results) {
    ones.push_back(at::ones_like(result));
  }
  return torch::autograd::grad(results, leaves, ones, /*retain_graph=*/false, /*create_graph=*/false,
                               /*allow_unused=*/true);
}

at::Tensor leaf(at::IntArrayRef size) { return at::randn(size).requires_grad_(); }

/// Two results and a view of the input between them: chunk, linear of one half, both halves side by side.
const std::string kSeveralResults = R"({"inputs": 1, "results": [1, 3, 2, 4], "steps": [
    {"op": "chunk", "inputs": [0], "chunks": 2, "dimension": 1},
    {"op": "linear", "inputs": [1], "weight": 0},
    {"op": "reshape", "inputs": [0], "sizes": [-1]}]})";

TEST(Executor, GivesResultsInOrder) {
  const at::Tensor x = leaf({5, 8});
  const at::Tensor weight = leaf({3, 4});
  const Tensors results = block_of(kSeveralResults).run({x}, {weight}, {});
  ASSERT_EQ(results.size(), 4);
  const Tensors halves = x.chunk(2, 1);
  EXPECT_TRUE(results[0].equal(halves[0]));
  EXPECT_TRUE(results[1].equal(at::linear(halves[0], weight)));
  EXPECT_TRUE(results[2].equal(halves[1]));
  EXPECT_TRUE(results[3].equal(x.reshape({-1})));
}

TEST(Executor, GivesViewsOfInputsTheirOwnMemory) {
  const at::Tensor x = at::randn({5, 8});
  const Tensors results = block_of(kSeveralResults).run({x}, {at::randn({3, 4})}, {});
  for (size_t first = 0; first < results.size(); ++first) {
    EXPECT_FALSE(results[first].is_alias_of(x));
    EXPECT_TRUE(results[first].is_contiguous());
    for (size_t second = 0; second < first; ++second) {
      EXPECT_FALSE(results[first].is_alias_of(results[second]));
    }
  }
}

TEST(Executor, TakesMissingGradientsAsZeros) {
  const at::Tensor x = leaf({5, 8});
  const at::Tensor weight = leaf({3, 4});
  const auto run = [&] { return block_of(kSeveralResults).run({x}, {weight}, {}); };
  const Tensors second_half = grad_of({run()[2]}, {x, weight});
  EXPECT_TRUE(second_half[0].equal(at::cat({at::zeros({5, 4}), at::ones({5, 4})}, 1)));
  EXPECT_TRUE(!second_half[1].defined() || second_half[1].eq(0).all().item<bool>());
  const Tensors product = grad_of({run()[1]}, {x, weight});
  EXPECT_TRUE(product[0].slice(1, 0, 4).allclose(weight.sum(0).expand({5, 4})));
  EXPECT_TRUE(product[0].slice(1, 4).eq(0).all().item<bool>());
  EXPECT_LT(relative_error(product[1], x.slice(1, 0, 4).sum(0).expand({3, 4})), 0.02);
}

TEST(Executor, AddsTheGradientsOfAParameterThatTwoStepsUse) {
  const std::string twice = R"({"inputs": 1, "results": [2], "steps": [
      {"op": "linear", "inputs": [0], "weight": 0}, {"op": "linear", "inputs": [1], "weight": 0, "bias": 1}]})";
  const at::Tensor x = leaf({6, 4});
  const at::Tensor weight = leaf({4, 4});
  const at::Tensor bias = leaf({4});
  const Tensors actual = grad_of(block_of(twice).run({x}, {weight, bias}, {}), {x, weight, bias});
  const Tensors expected = grad_of({at::linear(at::linear(x, weight), weight, bias)}, {x, weight, bias});
  for (size_t place = 0; place < expected.size(); ++place) {
    EXPECT_LT(relative_error(actual[place], expected[place]), 0.02);
  }
}

struct ResidualBlock {
  at::Tensor x = leaf({4, 8, 12, 12});
  Tensors parameters = {leaf({8, 8, 3, 3}), leaf({8}), leaf({8}), leaf({8, 8, 3, 3}), leaf({8}), leaf({8})};
  Tensors buffers = {at::zeros({8}), at::ones({8}), at::zeros({8}), at::ones({8})};

  Tensors leaves() const {
    Tensors all{x};
    all.insert(all.end(), parameters.begin(), parameters.end());
    return all;
  }

  at::Tensor expected() const {
    const auto norm = [&](const at::Tensor& y, size_t first) {
      return at::batch_norm(y, parameters[first], parameters[first + 1], {}, {}, true, 0.1, 1e-5, false);
    };
    const at::Tensor y = norm(at::conv2d(x, parameters[0], {}, 1, 1), 1).relu();
    return (norm(at::conv2d(y, parameters[3], {}, 1, 1), 4) + x).relu();
  }
};

TEST(Executor, TrainsAResidualBlock) {
  const ResidualBlock model;
  const Tensors results = block_of(kResidualBlock).run({model.x}, model.parameters, model.buffers);
  const at::Tensor expected = model.expected();
  EXPECT_LT(relative_error(results[0], expected), 1e-5);
  EXPECT_FALSE(model.buffers[0].eq(0).any().item<bool>());
  const Tensors actual = grad_of(results, model.leaves());
  const Tensors wanted = grad_of({expected}, model.leaves());
  for (size_t place = 0; place < wanted.size(); ++place) {
    EXPECT_LT(relative_error(actual[place], wanted[place]), 0.2) << place;
  }
}

TEST(Executor, SavesOnlyForTheGradientsThatAreWanted) {
  ResidualBlock model;
  const Block block = block_of(kResidualBlock, R"({"bits": 4})");
  EXPECT_EQ(block.saved_bytes(), 0);
  block.run({model.x}, model.parameters, model.buffers);
  const int64_t all = block.saved_bytes();
  const int64_t copy = model.x.numel() / 2;
  EXPECT_GT(all, 3 * copy);
  EXPECT_LT(all, 4 * copy);
  // The first convolution reads the copy of the input.
  model.parameters[0].requires_grad_(false);
  block.run({model.x}, model.parameters, model.buffers);
  EXPECT_LE(block.saved_bytes(), all - copy);
}

TEST(Executor, PacksTheCopyOfAPassThatGetsNoGradient) {
  const ResidualBlock model;
  for (const at::Tensor& tensor : model.leaves()) {
    tensor.set_requires_grad(false);
  }
  model.parameters[3].set_requires_grad(true);
  const Tensors results = block_of(kResidualBlock).run({model.x}, model.parameters, model.buffers);
  const at::Tensor actual = grad_of(results, {model.parameters[3]})[0];
  EXPECT_LT(relative_error(actual, grad_of({model.expected()}, {model.parameters[3]})[0]), 0.1);
}

TEST(Executor, SavesNothingWithoutGradients) {
  const ResidualBlock model;
  const Block block = block_of(kResidualBlock);
  block.run({model.x}, model.parameters, model.buffers);
  EXPECT_GT(block.saved_bytes(), 0);
  const at::NoGradGuard no_grad;
  EXPECT_FALSE(block.run({model.x}, model.parameters, model.buffers)[0].requires_grad());
  EXPECT_EQ(block.saved_bytes(), 0);
}

TEST(Executor, RunsInManyThreadsAtOnce) {
  const Block block = block_of(kResidualBlock, R"({"bits": 8, "output_bits": 8, "rounding": "nearest"})");
  const ResidualBlock model;
  const Tensors expected = grad_of(block.run({model.x}, model.parameters, model.buffers), model.leaves());
  std::vector<Tensors> found(4);
  std::vector<std::thread> threads;
  threads.reserve(found.size());
  for (Tensors& gradients : found) {
    threads.emplace_back([&] {
      for (int64_t repeat = 0; repeat < 5; ++repeat) {
        const Tensors buffers = {at::zeros({8}), at::ones({8}), at::zeros({8}), at::ones({8})};
        gradients = grad_of(block.run({model.x}, model.parameters, buffers), model.leaves());
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const Tensors& gradients : found) {
    for (size_t place = 0; place < expected.size(); ++place) {
      EXPECT_LT(relative_error(gradients[place], expected[place]), 1e-5);
    }
  }
}

TEST(Executor, HandsCopiesFromOneBlockToAnother) {
  const ResidualBlock first;
  ResidualBlock second;
  Plan exporting = plan_from_json("{\"program\": " + kResidualBlock + ", \"exports\": [7]}");
  const Block maker(exporting);
  const Block reader(make_plan(program_from_json(kResidualBlock), {}, {{{0}, exporting.copies.at({7})}}));
  const Tensors made = maker.run({first.x}, first.parameters, first.buffers);
  ASSERT_EQ(made.size(), 3);
  const Tensors results = reader.run({made[0]}, second.parameters, second.buffers, {}, {made[1], made[2]});
  EXPECT_LT(reader.saved_bytes(), maker.saved_bytes());
  const at::Tensor actual = grad_of(results, {second.parameters[0]})[0];
  second.x = made[0].detach();
  EXPECT_LT(relative_error(actual, grad_of({second.expected()}, {second.parameters[0]})[0]), 0.5);
}

TEST(Executor, FindsCopiesThatAnotherBlockHasPacked) {
  const ResidualBlock first;
  const ResidualBlock second;
  const at::Tensor made = block_of(kResidualBlock).run({first.x}, first.parameters, first.buffers)[0];
  const Block reader(plan_from_json("{\"program\": " + kResidualBlock + ", \"exports\": [7]}"));
  EXPECT_EQ(reader.run({made.clone()}, second.parameters, second.buffers).size(), 3);
  const int64_t with_own_copy = reader.saved_bytes();
  EXPECT_EQ(reader.run({made}, second.parameters, second.buffers).size(), 3);
  EXPECT_LT(reader.saved_bytes(), with_own_copy);
}

TEST(Executor, TakesExpandedGradients) {
  const std::string program = R"({"inputs": 1, "results": [1, 2], "steps": [
      {"op": "linear", "inputs": [0], "weight": 0}, {"op": "linear", "inputs": [1], "weight": 1}]})";
  const at::Tensor x = leaf({5, 8});
  const Tensors weights{leaf({6, 8}), leaf({4, 6})};
  const auto gradient = [&](const Tensors& results) {
    // Those of sums are one number, seen as many.
    return torch::autograd::grad({results[0].sum() * 2 + results[1].sum()}, {x})[0];
  };
  const at::Tensor hidden = at::linear(x, weights[0]);
  const at::Tensor expected = gradient({hidden, at::linear(hidden, weights[1])});
  EXPECT_TRUE(at::allclose(gradient(block_of(program).run({x}, weights, {})), expected, 1e-5, 1e-5));
}

TEST(Executor, AddsANormAndAValueThatIsStoredOtherwise) {
  const char* steps = R"(
      {"op": "reshape", "inputs": [0], "sizes": [2, 4, 3, 3]},
      {"op": "convolution", "inputs": [1], "weight": 0, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]},
      {"op": "batch_norm", "inputs": [3]},)";
  for (const char* summands : {"[2, 4]", "[4, 2]"}) {
    const std::string program = std::string(R"({"inputs": 2, "results": [5], "steps": [)") + steps +
                                R"({"op": "add", "inputs": )" + summands + "}]}";
    const Tensors inputs{leaf({2, 36}), leaf({2, 4, 3, 3})};
    const at::Tensor weight = leaf({4, 4, 1, 1});
    const at::Tensor norm = at::batch_norm(at::conv2d(inputs[1], weight), {}, {}, {}, {}, true, 0.1, 1e-5, false);
    const at::Tensor expected = inputs[0].reshape({2, 4, 3, 3}) + norm;
    const Tensors results = block_of(program).run(inputs, {weight}, {});
    EXPECT_TRUE(at::allclose(results[0], expected, 1e-4, 1e-4)) << summands;
    const at::Tensor cotangent = at::randn_like(expected);
    const at::Tensor actual = torch::autograd::grad(results, {weight}, {cotangent})[0];
    EXPECT_LT(relative_error(actual, torch::autograd::grad({expected}, {weight}, {cotangent})[0]), 0.05) << summands;
  }
}

TEST(Executor, ComputesTheSameDropoutAgainWhereverTheCopyLies) {
  const std::string program = R"({"inputs": 1, "results": [2, 3], "steps": [
      {"op": "layer_norm", "inputs": [0], "dimensions": 1, "eps": 1e-5},
      {"op": "dropout", "inputs": [1], "probability": 0.5},
      {"op": "convolution", "inputs": [2], "weight": 0, "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}]})";
  const at::Tensor weight = leaf({6, 4, 3, 3});
  const Tensors results = block_of(program).run({leaf({2, 4, 5, 7})}, {weight}, {});
  const at::Tensor cotangent = at::randn_like(results[1]);
  const at::Tensor actual = torch::autograd::grad({results[1]}, {weight}, {cotangent})[0];
  const at::Tensor exact = at::conv2d(results[0].detach(), weight, {}, /*stride=*/1, /*padding=*/1);
  EXPECT_LT(relative_error(actual, torch::autograd::grad({exact}, {weight}, {cotangent})[0]), 0.05);
}

TEST(Executor, RefusesListsOfOtherLengths) {
  const ResidualBlock model;
  const Block block = block_of(kResidualBlock);
  EXPECT_THROW(block.run({model.x, model.x}, model.parameters, model.buffers), c10::ValueError);
  EXPECT_THROW(block.run({model.x}, {}, model.buffers), c10::ValueError);
  EXPECT_THROW(block.run({model.x}, model.parameters, {}), c10::ValueError);
  EXPECT_THROW(block.run({model.x}, model.parameters, model.buffers, {3}), c10::ValueError);
  EXPECT_THROW(block.run({model.x}, model.parameters, model.buffers, {}, {model.x}), c10::ValueError);
  const Block sum = block_of(R"({"inputs": 2, "results": [2], "steps": [{"op": "add", "inputs": [0, 1]}]})");
  EXPECT_THROW(sum.run({at::ones({2, 2}), at::ones({2, 2}, at::kDouble)}, {}, {}), c10::TypeError);
  EXPECT_THROW(block.run({model.x.detach().to(at::kBFloat16)}, model.parameters, model.buffers), c10::TypeError);
}

}  // namespace
}  // namespace actnn::blocks
