#include "actnn/policy/policy.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "actnn/autograd/convolution.h"
#include "actnn/policy/bit_allocation.h"
#include "actnn/policy/scheme.h"

namespace actnn {
namespace {

using PolicyPointer = c10::intrusive_ptr<Policy>;
using SchemePointer = c10::intrusive_ptr<Scheme>;

/// Samples whose ranges grow with their index.
at::Tensor images(int64_t samples = 8) {
  return at::randn({samples, 4, 9, 11}) * at::arange(1, samples + 1).view({-1, 1, 1, 1});
}

/// A 3x3 convolution under a scheme.
struct Layer {
  explicit Layer(const PolicyPointer& policy, int64_t group = 0)
      : scheme(Scheme::create(policy, {.group = group, .num_locations = 9})),
        weight(at::randn({6, 4, 3, 3}).set_requires_grad(true)) {}

  at::Tensor forward(const at::Tensor& input) const {
    plan = scheme->plan(input);
    at::Tensor output =
        convolution(input, weight, std::nullopt, {.padding = {1}}, plan.quantization, std::nullopt, plan.retention);
    scheme->observe(output);
    return output;
  }

  SchemePointer scheme;
  at::Tensor weight;
  mutable Plan plan{};
};

void step(const Layer& layer, const at::Tensor& input) { layer.forward(input).square().mean().backward(); }

/// Both in one forward, and one backward.
void step_of_both(const Layer& loud, const Layer& quiet, double quieter) {
  (loud.forward(images()).square().mean() + quiet.forward(images() * quieter).square().mean()).backward();
}

class PolicyTest : public testing::Test {
 protected:
  void SetUp() override { at::manual_seed(0); }

  PolicyPointer policy = c10::make_intrusive<Policy>();
};

TEST_F(PolicyTest, BitsOfSamplesAreTheGreedyOnes) {
  const Layer layer(policy);
  const at::Tensor input = images();
  layer.forward(input);
  const at::Tensor bits = *layer.plan.retention.sample_bits;
  const at::Tensor start = at::full({8}, 8, at::kByte);
  EXPECT_TRUE(at::equal(bits, allocate_bits(start, layer.scheme->sensitivity(), at::ones({8}, at::kLong), 16)));
  EXPECT_EQ(layer.plan.retention.total_bits, 16);
  EXPECT_EQ(bits.sum().item<int64_t>(), 16);
  EXPECT_GT(bits[7].item<int64_t>(), bits[0].item<int64_t>());
}

TEST_F(PolicyTest, SensitivityIsTheFormula) {
  const Layer layer(policy);
  const at::Tensor input = images();
  step(layer, input);
  layer.forward(input);
  // One group of 256 and a shorter one, of 396 elements a sample.
  const at::Tensor flat = input.flatten(1);
  at::Tensor ranges = at::zeros({8});
  for (const auto& group : {flat.slice(1, 0, 256), flat.slice(1, 256)}) {
    ranges += (std::get<0>(group.max(1)) - std::get<0>(group.min(1))).square();
  }
  const at::Tensor expected = 9.0 / 4.0 * 256.0 / 99.0 * ranges * layer.scheme->scales();
  EXPECT_TRUE(at::allclose(layer.scheme->sensitivity(), expected, 1e-4));
}

TEST_F(PolicyTest, TheScaleIsARunningMeanOfSquaredGradientNorms) {
  const Layer layer(policy);
  const at::Tensor input = images();
  const auto gradient_of = [&](double factor) {
    const at::Tensor output = layer.forward(input);
    (output.square().mean() * factor).backward();
    return (2.0 * factor / static_cast<double>(output.numel()) * output.detach()).flatten(1).square().sum(1).mean();
  };
  const at::Tensor first = gradient_of(1.0);
  EXPECT_TRUE(at::allclose(layer.scheme->scales(), first));
  const at::Tensor second = gradient_of(10.0);
  EXPECT_TRUE(at::allclose(layer.scheme->scales(), 0.5 * first + 0.5 * second));
}

TEST_F(PolicyTest, AnInfiniteGradientLeavesTheScaleAlone) {
  const Layer layer(policy);
  step(layer, images());
  const at::Tensor before = layer.scheme->scales().clone();
  (layer.forward(images()).mean() * INFINITY).backward();
  EXPECT_TRUE(at::equal(layer.scheme->scales(), before));
}

TEST_F(PolicyTest, LayersShareTheBudgetByElements) {
  const Layer loud(policy);
  const Layer quiet(policy);
  step_of_both(loud, quiet, 1e-3);
  policy->allocate_per_layer();
  EXPECT_GT(loud.scheme->bits(), 2.5);
  EXPECT_LT(quiet.scheme->bits(), 1.5);
  EXPECT_LE(loud.scheme->bits() + quiet.scheme->bits(), 4.0);
  EXPECT_GT(loud.scheme->bits() + quiet.scheme->bits(), 3.7);
}

TEST_F(PolicyTest, AllocationActsAtTheNextForwardAndOncePerBackward) {
  const Layer loud(policy);
  const Layer quiet(policy);
  step_of_both(loud, quiet, 1e-3);
  EXPECT_EQ(loud.scheme->bits(), 2.0);
  loud.forward(images());
  const double allocated = loud.scheme->bits();
  EXPECT_GT(allocated, 2.0);
  loud.scheme->set_bits(5.0);
  loud.forward(images());
  EXPECT_EQ(loud.scheme->bits(), 5.0);
}

TEST_F(PolicyTest, ALayerThatWasNotUsedKeepsItsBits) {
  const Layer used(policy);
  const Layer skipped(policy);
  skipped.scheme->set_bits(3.5);
  step(used, images());
  used.forward(images());
  EXPECT_EQ(skipped.scheme->bits(), 3.5);
}

TEST_F(PolicyTest, ForwardsWithoutABackwardChangeNothing) {
  const Layer layer(policy);
  for (int i = 0; i < 3; ++i) {
    layer.forward(images());
  }
  EXPECT_EQ(layer.scheme->bits(), 2.0);
  EXPECT_FALSE(layer.scheme->scales().defined());
  EXPECT_TRUE(std::isnan(policy->predicted_noise()));
}

TEST_F(PolicyTest, GroupsHaveBudgetsOfTheirOwn) {
  policy->config().activation_compression_bits = {2, 4};
  const Layer first(policy, 0);
  const Layer second(policy, 1);
  step_of_both(first, second, 1e-4);
  policy->allocate_per_layer();
  EXPECT_NEAR(first.scheme->bits(), 2.0, 0.2);
  EXPECT_NEAR(second.scheme->bits(), 4.0, 0.2);
}

TEST_F(PolicyTest, WhereSamplesHaveEqualBitsLayersAreTheUnits) {
  policy->config().activation_compression_bits = {2};
  policy->config().initial_bits = 2;
  const Layer loud(policy);
  const Layer quiet(policy);
  step_of_both(loud, quiet, 1e-3);
  EXPECT_FALSE(loud.plan.retention.sample_bits);
  EXPECT_EQ(loud.plan.quantization.bits, 2);
  policy->allocate_per_layer();
  EXPECT_EQ(loud.scheme->bits(), 3.0);
  EXPECT_EQ(quiet.scheme->bits(), 1.0);
}

TEST_F(PolicyTest, ANoiseTargetIsMetWithTheFewestBits) {
  policy->config().noise_target = 0.01;
  const Layer first(policy);
  const Layer second(policy);
  for (int i = 0; i < 3; ++i) {
    step_of_both(first, second, 0.1);
  }
  for (const double target : {0.5, 0.05, 0.005}) {
    policy->config().noise_target = target;
    policy->allocate_per_layer();
    step_of_both(first, second, 0.1);
    EXPECT_LT(policy->predicted_noise(), 2.0 * target);
    EXPECT_GT(policy->predicted_noise(), 0.1 * target);
  }
}

TEST_F(PolicyTest, ACorrectionMultipliesPredictions) {
  const Layer layer(policy);
  step(layer, images());
  const double before = policy->predicted_noise();
  EXPECT_GT(before, 0.0);
  policy->set_noise_correction(3.0);
  EXPECT_NEAR(policy->predicted_noise(), 3.0 * before, 1e-6 * before);
  EXPECT_THROW(policy->set_noise_correction(0.0), c10::ValueError);
}

TEST_F(PolicyTest, ATableHasAGradientNormPerTrainingSample) {
  policy->config().use_gradient = true;
  policy->set_num_samples(20);
  const Layer layer(policy);
  EXPECT_THROW(layer.forward(images()), c10::ValueError);  // no indices
  policy->set_batch(at::arange(3, 11));
  step(layer, images());
  const at::Tensor table = layer.scheme->scales();
  EXPECT_EQ(table.sizes(), at::IntArrayRef({20}));
  EXPECT_TRUE(at::equal(table > 0, (at::arange(20) >= 3) & (at::arange(20) < 11)));
  EXPECT_THROW(policy->set_batch(at::arange(13, 21)), c10::ValueError);
  EXPECT_THROW(policy->set_batch(at::ones({8})), c10::TypeError);
  policy->set_batch(at::arange(3, 10));
  EXPECT_THROW(layer.forward(images()), c10::ValueError);  // seven indices, eight samples

  // Samples that were not seen count as the mean of those of the batch that were.
  policy->set_batch(at::arange(7, 15));
  const at::Tensor input = images();
  layer.scheme->plan(input);
  const Layer without_gradients(policy);
  without_gradients.scheme->plan(input);
  const at::Tensor seen = table.slice(0, 7, 11);
  const at::Tensor gradients = at::cat({seen, seen.mean().expand({4})});
  EXPECT_TRUE(at::allclose(layer.scheme->sensitivity(), without_gradients.scheme->sensitivity() * gradients));
}

TEST_F(PolicyTest, ATableFitsWhatIsConfiguredNow) {
  policy->config().use_gradient = true;
  policy->set_num_samples(8);
  const Layer layer(policy);
  policy->set_batch(at::arange(8));
  step(layer, images());
  policy->set_num_samples(20);
  policy->set_batch(at::arange(12, 20));
  step(layer, images());
  EXPECT_EQ(layer.scheme->scales().sizes(), at::IntArrayRef({20}));
  EXPECT_TRUE((layer.scheme->scales().slice(0, 0, 8) > 0).all().item<bool>());
  policy->config().use_gradient = false;
  policy->set_batch(std::nullopt);
  step(layer, images());
  EXPECT_EQ(layer.scheme->scales().dim(), 0);
}

TEST_F(PolicyTest, BatchNormTakesTheBitsOfTheLayerBefore) {
  const SchemePointer first = Scheme::create(policy, {.normalization = true});
  const Layer layer(policy);
  const SchemePointer second = Scheme::create(policy, {.normalization = true});
  layer.scheme->set_bits(3.0);
  for (int forward = 0; forward < 2; ++forward) {
    EXPECT_FALSE(first->plan(images()).retention.sample_bits);
    EXPECT_EQ(first->bits(), 8.0);
    layer.forward(images());
    EXPECT_EQ(second->plan(images()).retention.total_bits, 24);
    EXPECT_EQ(second->bits(), 3.0);
  }
}

TEST_F(PolicyTest, ANewLayerIsNotTakenForOneThatIsGone) {
  for (int model = 0; model < 20; ++model) {  // allocators hand out the same addresses again
    const Layer layer(policy);
    const SchemePointer norm = Scheme::create(policy, {.normalization = true});
    layer.forward(images(2));
    norm->plan(images(2));
    EXPECT_EQ(policy->previous(), layer.scheme);
    if (model % 2 == 0) {
      const SchemePointer extra = Scheme::create(policy, {.normalization = true});
    }
  }
}

TEST_F(PolicyTest, StateGoesToAnotherScheme) {
  const Layer layer(policy);
  step(layer, images());
  layer.scheme->set_bits(2.75);
  const Layer other(policy);
  other.scheme->load_state(layer.scheme->state());
  EXPECT_EQ(other.scheme->bits(), 2.75);
  EXPECT_TRUE(at::equal(other.scheme->scales(), layer.scheme->scales()));
  EXPECT_THROW(other.scheme->load_state({}), c10::ValueError);
  EXPECT_THROW(other.scheme->load_state({{"bits", at::tensor(9.0)}}), c10::ValueError);
}

TEST_F(PolicyTest, FlagsTurnAdaptivityOff) {
  const Layer layer(policy);
  policy->config().adaptive_conv_scheme = false;
  layer.forward(images());
  EXPECT_FALSE(layer.plan.retention.sample_bits);
  EXPECT_EQ(layer.plan.quantization.bits, 2);
  policy->config().pergroup = false;
  policy->config().rounding = Rounding::kNearest;
  policy->config().simulate = true;
  policy->config().swap = true;
  policy->config().training = false;
  layer.forward(images());
  EXPECT_EQ(layer.plan.quantization.group_size, 0);
  EXPECT_EQ(layer.plan.quantization.rounding, Rounding::kNearest);
  EXPECT_TRUE(layer.plan.retention.simulate && layer.plan.retention.offload && !layer.plan.retention.compress);
}

TEST_F(PolicyTest, SchemesAreKnownWhileTheyLive) {
  EXPECT_TRUE(policy->schemes().empty());
  {
    const Layer layer(policy);
    EXPECT_EQ(policy->schemes().size(), 1U);
    layer.forward(images());
    EXPECT_EQ(policy->previous(), layer.scheme);
  }
  EXPECT_TRUE(policy->schemes().empty());
  EXPECT_FALSE(policy->previous());
  EXPECT_THROW(Scheme::create(policy, {.group = 3}), c10::ValueError);
  EXPECT_THROW(Scheme::create(policy, {.num_locations = 0}), c10::ValueError);
  EXPECT_THROW(Scheme::create({}, {}), c10::ValueError);
}

}  // namespace
}  // namespace actnn
