// What a plan fuses, saves and computes again, and which plans are refused.
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "actnn/blocks/plan.h"
#include "tests/cpp/blocks/program_texts.h"

namespace actnn::blocks {
namespace {

using Values = std::vector<int64_t>;
using StepLists = std::vector<std::vector<size_t>>;

Plan plan_of(const std::string& program, const PlanOptions& options = {}) {
  return make_plan(program_from_json(program), options);
}

Values copies(const Plan& plan) {
  Values values;
  for (const auto& [value, format] : plan.copies) {
    values.push_back(value.number);
  }
  return values;
}

Values numbers(const std::set<Value>& values) {
  Values list;
  for (const Value value : values) {
    list.push_back(value.number);
  }
  return list;
}

StepLists fused_steps(const Plan& plan) {
  StepLists lists;
  for (const Fusion& fusion : plan.fusions) {
    lists.push_back(fusion.steps);
  }
  return lists;
}

/// What `check_plan` says; empty if it finds nothing.
std::string refusal(const Plan& plan) {
  try {
    check_plan(plan);
    return "";
  } catch (const c10::ValueError& error) {
    return error.what_without_backtrace();
  }
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Planner, FusesNormsWithWhatFollowsThem) {
  const Plan plan = plan_of(kResidualBlock);
  EXPECT_EQ(fused_steps(plan), (StepLists{{1, 2}, {4, 5, 6}}));
  EXPECT_EQ(plan.stages.size(), 4);
}

TEST(Planner, ComputesTheInputOfTheLastNormAgain) {
  const Plan plan = plan_of(kResidualBlock);
  EXPECT_EQ(copies(plan), (Values{0, 3, 7}));
  EXPECT_EQ(numbers(plan.recomputes), (Values{4}));
  EXPECT_TRUE(plan.saves.empty());
}

TEST(Planner, SavesNormalizedValuesWhereNothingIsComputedAgain) {
  for (const PlanOptions& options : {PlanOptions{.recompute = false}, PlanOptions::of_bits(2)}) {
    const Plan plan = plan_of(kResidualBlock, options);
    EXPECT_TRUE(plan.recomputes.empty());
    ASSERT_EQ(plan.saves.size(), 1);
    EXPECT_EQ(plan.saves.begin()->first, std::pair(Value{7}, Form::kNormalized));
    EXPECT_EQ(plan.saves.begin()->second.bits, options.norm_bits);
  }
}

TEST(Planner, GivesOtherCopiesTheBitsThatGoWithThose) {
  const PlanOptions eight = PlanOptions::of_bits(8);
  EXPECT_EQ(eight.output_bits, 8);
  EXPECT_EQ(eight.smooth_bits, 8);
  EXPECT_EQ(eight.norm_bits, 7);
  EXPECT_EQ(PlanOptions::of_bits(2).smooth_bits, 5);
  EXPECT_EQ(eight.attention_bits, 8);
  EXPECT_EQ(PlanOptions::of_bits(2).attention_bits, 6);
  EXPECT_EQ(PlanOptions::of_bits(2).norm_bits, 2);
  EXPECT_EQ(PlanOptions::of_bits(4).norm_bits, PlanOptions{}.norm_bits);
}

TEST(Planner, HasBitsForSumsAndForSingleValues) {
  const Plan plan = plan_of(kResidualBlock, {.bits = 5, .output_bits = 3, .value_bits = {{{0}, 8}}});
  EXPECT_EQ(plan.copies.at({0}).bits, 8);
  // The side of a ReLU is a mask beside the codes.
  EXPECT_EQ(plan.copies.at({3}).bits, 5 - 1);
  EXPECT_EQ(plan.copies.at({7}).bits, 3 - 1);
  EXPECT_EQ(plan.copies.at({7}).kind, CopyFormat::Kind::kPass);
}

TEST(Planner, SavesSmallValuesAsTheyAre) {
  const Plan plan = plan_of(kConcatenation, {.exact = {{1}}});
  EXPECT_EQ(plan.copies.at({0}).kind, CopyFormat::Kind::kColumns);
  EXPECT_EQ(plan.copies.at({1}).kind, CopyFormat::Kind::kExact);
}

TEST(Planner, TakesConcatenationsFromTheCopiesOfTheirParts) {
  const Plan plan = plan_of(kConcatenation);
  EXPECT_EQ(numbers(plan.recomputes), (Values{2}));
  EXPECT_EQ(copies(plan), (Values{0, 1}));
}

/// linear, gelu, linear, of rows of channels. Values: 1 linear, 2 gelu, 3 linear.
const std::string kPerceptron = R"({"inputs": 1, "results": [3], "steps": [
    {"op": "linear", "inputs": [0], "weight": 0},
    {"op": "activation", "inputs": [1], "kind": "gelu"},
    {"op": "linear", "inputs": [2], "weight": 1}]})";

TEST(Planner, HasColumnsWhereChannelsAreInnermost) {
  const Plan plan = plan_of(kPerceptron, {.group_rows = 128});
  for (const auto& [value, format] : plan.copies) {
    EXPECT_EQ(format.kind, CopyFormat::Kind::kColumns) << value.number;
    EXPECT_EQ(format.group_rows, 128) << value.number;
  }
  // Nobody says that the last dimension of these are channels.
  const Plan plain = plan_of(R"({"inputs": 2, "results": [2], "steps": [{"op": "multiply", "inputs": [0, 1]}]})");
  EXPECT_EQ(plain.copies.at({0}).kind, CopyFormat::Kind::kPacked);
}

TEST(Planner, KeepsTheInputOfASmoothActivationWhoseOutputIsRead) {
  const Plan plan = plan_of(kPerceptron);
  EXPECT_EQ(copies(plan), (Values{0, 1}));
  EXPECT_EQ(numbers(plan.recomputes), (Values{2}));
  EXPECT_EQ(plan.copies.at({0}).bits, 4);
  EXPECT_EQ(plan.copies.at({1}).bits, 5);
  EXPECT_TRUE(plan.saves.empty());
  EXPECT_EQ(plan_of(kPerceptron, {.bits = 6}).copies.at({1}).bits, 6);
  EXPECT_EQ(plan_of(kPerceptron, {.value_bits = {{{1}, 3}}}).copies.at({1}).bits, 3);
}

TEST(Planner, KeepsADerivativeWhereNobodyReadsTheOutput) {
  const Plan plan = plan_of(R"({"inputs": 1, "results": [2], "steps": [
      {"op": "linear", "inputs": [0], "weight": 0}, {"op": "activation", "inputs": [1], "kind": "silu"}]})");
  EXPECT_EQ(copies(plan), (Values{0}));
  EXPECT_EQ(plan.saves.at({{2}, Form::kDerivative}).bits, 4);
}

TEST(Planner, ComputesNothingNonlinearFromACopyOfSomebodyElses) {
  // Of an input, the copy may have any number of bits.
  const Plan plan = plan_of(kConcatenation);
  EXPECT_EQ(plan.saves.count({{1}, Form::kDerivative}), 1);
  EXPECT_EQ(copies(plan), (Values{0, 1}));
}

TEST(Planner, KeepsTheProductThatASmoothActivationReads) {
  const std::string program = R"({"inputs": 2, "results": [4], "steps": [
      {"op": "multiply", "inputs": [0, 1]},
      {"op": "activation", "inputs": [2], "kind": "gelu"},
      {"op": "linear", "inputs": [3], "weight": 0}]})";
  EXPECT_EQ(plan_of(program).copies.at({2}).bits, 5);
  // With an exact factor the product is a copy as coarse as the other one.
  const Plan coarse = plan_of(program, {.exact = {{1}}});
  EXPECT_EQ(coarse.saves.count({{3}, Form::kDerivative}), 1);
}

TEST(Planner, HasOneFineCopyOfANormBehindWhichIsASmoothActivation) {
  const Plan plan = plan_of(R"({"inputs": 1, "results": [4], "steps": [
      {"op": "layer_norm", "inputs": [0], "dimensions": 1, "eps": 1e-5},
      {"op": "activation", "inputs": [1], "kind": "gelu_tanh"},
      {"op": "dropout", "inputs": [2], "probability": 0.1},
      {"op": "linear", "inputs": [3], "weight": 0}]})");
  EXPECT_TRUE(plan.copies.empty());
  EXPECT_EQ(numbers(plan.recomputes), (Values{1, 2, 3}));
  ASSERT_EQ(plan.saves.size(), 1);
  EXPECT_EQ(plan.saves.at({{1}, Form::kNormalized}).bits, 5);
}

TEST(Planner, AddsAndNormalizesInOnePass) {
  const std::string start = R"({"inputs": 2, "steps": [
      {"op": "linear", "inputs": [0], "weight": 0},
      {"op": "dropout", "inputs": [2], "probability": 0.1},
      {"op": "add", "inputs": [1, 3]},
      {"op": "rms_norm", "inputs": [4], "dimensions": 1},
      {"op": "linear", "inputs": [5], "weight": 1})";
  const Plan plan = plan_of(start + R"(], "results": [6]})");
  ASSERT_EQ(plan.fusions.size(), 1);
  EXPECT_EQ(plan.fusions[0].name, "add_norm");
  EXPECT_EQ(plan.fusions[0].steps, (std::vector<size_t>{1, 2, 3}));
  EXPECT_EQ(numbers(plan.recomputes), (Values{5}));
  EXPECT_EQ(plan.stages.size(), 3);
  // Of two norms of a sum, the first has it; a product that reads the sum has a copy of it.
  const Plan shared = plan_of(start + R"(,
      {"op": "rms_norm", "inputs": [4], "dimensions": 1},
      {"op": "linear", "inputs": [4], "weight": 2},
      {"op": "add", "inputs": [7, 8]}], "results": [6, 9]})");
  ASSERT_EQ(shared.fusions.size(), 1);
  EXPECT_EQ(shared.fusions[0].steps, (std::vector<size_t>{1, 2, 3}));
  EXPECT_EQ(copies(shared), (Values{0, 4}));
}

TEST(Planner, ComputesAGateAgainFromOneFineCopyOfItsHalves) {
  const Plan plan = plan_of(R"({"inputs": 1, "results": [6], "steps": [
      {"op": "linear", "inputs": [0], "weight": 0},
      {"op": "split", "inputs": [1], "sizes": [8, 8], "dimension": -1},
      {"op": "activation", "inputs": [2], "kind": "silu"},
      {"op": "multiply", "inputs": [4, 3]},
      {"op": "linear", "inputs": [5], "weight": 1}]})");
  EXPECT_EQ(plan.copies.at({1}).bits, 5);
  EXPECT_EQ(numbers(plan.recomputes), (Values{2, 3, 5}));
  EXPECT_EQ(copies(plan), (Values{0, 1}));
  ASSERT_EQ(plan.fusions.size(), 1);
  EXPECT_EQ(plan.fusions[0].name, "gated_activation");
}

TEST(Planner, KeepsAGateOfAnInputApart) {
  // Its copy is perhaps somebody else's, and coarse.
  EXPECT_TRUE(plan_of(R"({"inputs": 2, "results": [4], "steps": [
      {"op": "activation", "inputs": [0], "kind": "silu"},
      {"op": "multiply", "inputs": [2, 1]},
      {"op": "linear", "inputs": [3], "weight": 0}]})")
                  .fusions.empty());
}

constexpr const char* kAttention = R"({"inputs": 1, "results": [5], "steps": [
    {"op": "linear", "inputs": [0], "weight": 0},
    {"op": "linear", "inputs": [0], "weight": 1},
    {"op": "linear", "inputs": [0], "weight": 2},
    {"op": "attention", "inputs": [1, 2, 3]},
    {"op": "linear", "inputs": [4], "weight": 3}]})";

TEST(Planner, ComputesAttentionAgainFromFineCopies) {
  const Plan plan = plan_of(kAttention);
  for (const int64_t value : {1, 2, 3}) {
    EXPECT_EQ(plan.copies.at({value}).bits, kAttentionBits);
  }
  EXPECT_EQ(plan.copies.at({4}).bits, 4);  // for both readers
  const Plan exact = plan_of(kAttention, {.attention_bits = 0});
  EXPECT_EQ(copies(exact), (Values{0, 4}));
  EXPECT_THROW(plan_of(kAttention, {.attention_bits = 4}), c10::ValueError);
  // What an input's copy is like is not known.
  EXPECT_EQ(copies(plan_of(kAttention, {.recompute_attention = true})), copies(plan));
}

TEST(Planner, KeepsAttentionExactlyWhereCopiesAreCoarse) {
  // An input's copy is perhaps somebody else's.
  const Plan plan = plan_of(R"({"inputs": 2, "results": [5], "steps": [
      {"op": "linear", "inputs": [0], "weight": 0},
      {"op": "linear", "inputs": [0], "weight": 1},
      {"op": "attention", "inputs": [2, 3, 1]},
      {"op": "linear", "inputs": [4], "weight": 2}]})");
  EXPECT_EQ(copies(plan), (Values{0, 4}));
}

TEST(Planner, ComputesQueryKeyAndValueAgainFromTheCopyOfANorm) {
  const std::string program = R"({"inputs": 3, "results": [11], "steps": [
      {"op": "layer_norm", "inputs": [0], "dimensions": 1, "eps": 1e-5},
      {"op": "linear", "inputs": [3], "weight": 0},
      {"op": "linear", "inputs": [3], "weight": 1},
      {"op": "linear", "inputs": [3], "weight": 2},
      {"op": "rotary", "inputs": [4, 1, 2]},
      {"op": "rotary", "inputs": [5, 1, 2]},
      {"op": "attention", "inputs": [7, 8, 6]},
      {"op": "linear", "inputs": [9], "weight": 3},
      {"op": "add", "inputs": [10, 0]}]})";
  const Plan kept = plan_of(program);
  EXPECT_EQ(copies(kept), (Values{4, 5, 6, 9}));
  EXPECT_EQ(numbers(kept.recomputes), (Values{3, 7, 8}));
  const Plan again = plan_of(program, {.recompute_attention = true});
  EXPECT_EQ(copies(again), (Values{9}));
  EXPECT_EQ(numbers(again.recomputes), (Values{3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(again.saves.at({{3}, Form::kNormalized}).bits, kAttentionBits);
  EXPECT_EQ(kept.saves.at({{3}, Form::kNormalized}).bits, 4);
}

TEST(Planner, ComputesTurnedPartsAgainFromTheCopyOfTheirProduct) {
  const std::string parts = R"({"op": "chunk", "inputs": [3], "chunks": 3, "dimension": -1},)";
  const std::string attention = R"({"op": "rotary", "inputs": [4, 1, 2]},
      {"op": "rotary", "inputs": [5, 1, 2]},
      {"op": "attention", "inputs": [7, 8, 6]},
      {"op": "linear", "inputs": [9], "weight": 1}]})";
  const Plan plan = plan_of(R"({"inputs": 3, "results": [10], "steps": [
      {"op": "linear", "inputs": [0], "weight": 0},)" +
                            parts + attention);
  EXPECT_EQ(copies(plan), (Values{0, 3, 9}));
  EXPECT_EQ(numbers(plan.recomputes), (Values{4, 5, 6, 7, 8}));
  EXPECT_EQ(plan.copies.at({3}).bits, kAttentionBits);
  // A norm of them has what it is computed of.
  const Plan of_norm = plan_of(R"({"inputs": 3, "results": [10], "steps": [
      {"op": "layer_norm", "inputs": [0], "dimensions": 1, "eps": 1e-5},)" +
                               parts + attention);
  EXPECT_EQ(copies(of_norm), (Values{9}));
  EXPECT_EQ(of_norm.saves.at({{3}, Form::kNormalized}).bits, kAttentionBits);
}

TEST(Planner, CopiesSmallPartsByThemselves) {
  const std::string linears = R"({"op": "linear", "inputs": [1], "weight": 0},
      {"op": "linear", "inputs": [3], "weight": 1}]})";
  const auto parts = [](const std::string& sizes) {
    return R"({"op": "split", "inputs": [0], "sizes": )" + sizes + R"(, "dimension": 1},)";
  };
  const std::string begin = R"({"inputs": 1, "results": [4], "steps": [)";
  EXPECT_EQ(copies(plan_of(begin + parts("[4, 60]") + linears)), (Values{1, 3}));
  EXPECT_EQ(copies(plan_of(begin + parts("[40, 24]") + linears)), (Values{0, 3}));
  // There is a copy of the whole anyway.
  const std::string both = R"({"inputs": 1, "results": [3, 4], "steps": [)" + parts("[4, 60]") +
                           R"({"op": "linear", "inputs": [0], "weight": 0},
      {"op": "linear", "inputs": [1], "weight": 0}]})";
  EXPECT_EQ(copies(plan_of(both)), (Values{0}));
}

/// Angles lie in memory as they do, which says nothing of what they turn.
TEST(Planner, StoresWhatIsTurnedAsHeadsAreStored) {
  const Plan plan = plan_of(R"({"inputs": 3, "results": [10], "steps": [
      {"op": "linear", "inputs": [0], "weight": 0},
      {"op": "reshape", "inputs": [3], "sizes": [2, 5, 4, 8]},
      {"op": "permute", "inputs": [4], "dimensions": [0, 2, 1, 3]},
      {"op": "unsqueeze", "inputs": [1], "dimension": 1},
      {"op": "unsqueeze", "inputs": [2], "dimension": 1},
      {"op": "rotary", "inputs": [5, 6, 7]},
      {"op": "attention", "inputs": [8, 8, 8]},
      {"op": "permute", "inputs": [9], "dimensions": [0, 2, 1, 3]}]})");
  EXPECT_EQ(plan.layouts[5], Layout::kHeads);
  EXPECT_EQ(plan.layouts[8], Layout::kHeads);
}

TEST(Planner, ComputesAnMlpAgainFromTheCopyOfANorm) {
  const std::string norm = R"({"op": "layer_norm", "inputs": [0], "dimensions": 1, "eps": 1e-5})";
  const std::string plain = R"({"inputs": 1, "results": [4], "steps": [)" + norm + R"(,
      {"op": "linear", "inputs": [1], "weight": 0},
      {"op": "activation", "inputs": [2], "kind": "gelu"},
      {"op": "linear", "inputs": [3], "weight": 1}]})";
  const std::string gated = R"({"inputs": 1, "results": [6], "steps": [)" + norm + R"(,
      {"op": "linear", "inputs": [1], "weight": 0},
      {"op": "linear", "inputs": [1], "weight": 1},
      {"op": "activation", "inputs": [2], "kind": "silu"},
      {"op": "multiply", "inputs": [4, 3]},
      {"op": "linear", "inputs": [5], "weight": 2}]})";
  EXPECT_EQ(copies(plan_of(plain)), (Values{2}));
  EXPECT_EQ(copies(plan_of(gated)), (Values{2, 3}));
  for (const std::string& program : {plain, gated}) {
    const Plan plan = plan_of(program, {.recompute_mlp = true});
    EXPECT_TRUE(plan.copies.empty());
    EXPECT_EQ(plan.saves.at({{1}, Form::kNormalized}).bits, kSmoothBits);
  }
  // What the copy of an input is like is not known.
  EXPECT_EQ(copies(plan_of(R"({"inputs": 1, "results": [3], "steps": [
      {"op": "linear", "inputs": [0], "weight": 0},
      {"op": "activation", "inputs": [1], "kind": "gelu"},
      {"op": "linear", "inputs": [2], "weight": 1}]})",
                           {.recompute_mlp = true})),
            (Values{0, 1}));
}

TEST(Planner, SavesNoCopyOfAnImportedInput) {
  const Plan plan = make_plan(program_from_json(kConcatenation), {}, {{{0}, {.bits = 3}}});
  EXPECT_EQ(copies(plan), (Values{1}));
  EXPECT_EQ(refusal(plan), "");
}

TEST(Planner, RefusesBitsOutOfRange) {
  EXPECT_THROW(plan_of(kConcatenation, {.bits = 1}), c10::ValueError);
  EXPECT_THROW(plan_of(kConcatenation, {.output_bits = 9}), c10::ValueError);
  EXPECT_THROW(plan_of(kConcatenation, {.norm_bits = 9}), c10::ValueError);
  EXPECT_THROW(plan_of(kConcatenation, {.value_bits = {{{1}, 9}}}), c10::ValueError);
  EXPECT_THROW(plan_of(kConcatenation, {.value_bits = {{{5}, 4}}}), c10::ValueError);
  EXPECT_THROW(plan_of(kConcatenation, {.exact = {{-1}}}), c10::ValueError);
  EXPECT_THROW(make_plan(program_from_json(kConcatenation), {}, {{{0}, {.bits = 9}}}), c10::ValueError);
}

TEST(CheckPlan, FindsEveryCopyThatIsMissing) {
  for (const std::string& program : {kResidualBlock, kConcatenation}) {
    const Plan plan = plan_of(program);
    EXPECT_EQ(refusal(plan), "");
    for (const auto& [value, format] : plan.copies) {
      Plan changed = plan;
      changed.copies.erase(value);
      EXPECT_PRED2(contains, refusal(changed), "needs a copy of value " + std::to_string(value.number) + ", which");
    }
    for (const Value value : plan.recomputes) {
      Plan changed = plan;
      changed.recomputes.erase(value);
      EXPECT_PRED2(contains, refusal(changed), "needs a copy of value " + std::to_string(value.number) + ", which");
    }
  }
}

TEST(CheckPlan, AcceptsACopyMoreThanThereMustBe) {
  Plan plan = plan_of(kConcatenation);
  plan.recomputes.clear();
  plan.copies[{2}] = {.bits = 6};
  EXPECT_EQ(refusal(plan), "");
}

TEST(CheckPlan, RefusesToComputeInputsAgain) {
  Plan plan = plan_of(kConcatenation);
  plan.copies.erase(Value{0});
  plan.recomputes.insert({0});
  EXPECT_PRED2(contains, refusal(plan), "value 0 cannot be computed again, for no step makes it");
}

TEST(CheckPlan, RefusesToComputeAgainWhatWouldBeBiased) {
  Plan plan = plan_of(kConcatenation);
  plan.copies.erase(Value{1});
  plan.recomputes.insert({1});
  EXPECT_PRED2(contains, refusal(plan), "again, for activation of unbiased copies is biased");
}

TEST(CheckPlan, RefusesStagesThatReadTooEarly) {
  Plan plan = plan_of(kConcatenation);
  std::swap(plan.stages[1], plan.stages[2]);
  EXPECT_PRED2(contains, refusal(plan), "convolution reads value 2, which no stage before it makes");
}

TEST(CheckPlan, RefusesResultsThatNobodyMakes) {
  Plan plan = plan_of(kConcatenation);
  plan.stages.pop_back();
  EXPECT_PRED2(contains, refusal(plan), "no stage of the plan makes the result, value 4");
}

TEST(CheckPlan, RefusesExportsOfWhatIsNotSaved) {
  Plan plan = plan_of(kResidualBlock);
  plan.exports = {{7}};
  EXPECT_EQ(refusal(plan), "");
  plan.exports = {{4}};
  EXPECT_PRED2(contains, refusal(plan), "the copy of value 4 cannot be exported, for the plan saves none");
}

TEST(CheckPlan, RefusesImportsOfOtherValuesThanInputs) {
  Plan plan = plan_of(kConcatenation);
  plan.imports = {{{1}, {}}};
  EXPECT_PRED2(contains, refusal(plan), "imports must name inputs, got value 1");
}

/// Of a layer under autocast: what is made in float32 and read by products in bfloat16.
Plan plan_under_autocast(const std::string& steps, const std::string& results, const std::string& dtypes) {
  return make_plan(program_from_json(R"({"inputs": 1, "results": )" + results + R"(, "steps": [)" + steps +
                                     R"(], "dtypes": )" + dtypes + "}"),
                   {});
}

at::ScalarType dtype_of_value(const Plan& plan, int64_t value) { return plan.program.dtypes.at(value); }

TEST(Planner, GivesWhatOnlyProductsReadTheirDtype) {
  const std::string norm = R"({"op": "layer_norm", "inputs": [0], "dimensions": 1, "eps": 1e-5},)";
  const std::string through_view =
      norm + R"({"op": "reshape", "inputs": [1], "sizes": [-1, 8]}, {"op": "linear", "inputs": [2], "weight": 0})";
  const Plan alone = plan_under_autocast(through_view, "[3]", R"(["float32", "float32", "float32", "bfloat16"])");
  EXPECT_EQ(dtype_of_value(alone, 1), at::kBFloat16);
  EXPECT_EQ(dtype_of_value(alone, 2), at::kBFloat16);
  // A result stays what it is, and what it is shown of.
  const Plan shown = plan_under_autocast(through_view, "[2, 3]", R"(["float32", "float32", "float32", "bfloat16"])");
  EXPECT_EQ(dtype_of_value(shown, 1), at::kFloat);
  EXPECT_EQ(dtype_of_value(shown, 2), at::kFloat);
  EXPECT_TRUE(shown.second_dtypes.empty());
  // With another reader it is there twice.
  const Plan twice =
      plan_under_autocast(norm + R"({"op": "linear", "inputs": [1], "weight": 0}, {"op": "add", "inputs": [1, 0]})",
                          "[2, 3]", R"(["float32", "float32", "bfloat16", "float32"])");
  EXPECT_EQ(dtype_of_value(twice, 1), at::kFloat);
  EXPECT_EQ(twice.second_dtypes.at({1}), at::kBFloat16);
}

TEST(Planner, WidensNoOutput) {
  const std::string steps = R"({"op": "layer_norm", "inputs": [0], "dimensions": 1, "eps": 1e-5},
      {"op": "reshape", "inputs": [1], "sizes": [-1, 8]}, {"op": "linear", "inputs": [2], "weight": 0})";
  const Plan plan = plan_under_autocast(steps, "[3]", R"(["bfloat16", "bfloat16", "bfloat16", "float32"])");
  EXPECT_EQ(dtype_of_value(plan, 1), at::kBFloat16);
  EXPECT_EQ(dtype_of_value(plan, 2), at::kBFloat16);
  EXPECT_TRUE(plan.second_dtypes.empty());
}

TEST(Planner, GivesAnActivationThatOnlyProductsReadTheDtypeOfItsInput) {
  const std::string steps = R"({"op": "activation", "inputs": [0], "kind": "gelu_tanh"},
      {"op": "reshape", "inputs": [1], "sizes": [-1, 8]}, {"op": "linear", "inputs": [2], "weight": 0})";
  const Plan wide = plan_under_autocast(steps, "[3]", R"(["bfloat16", "float32", "float32", "bfloat16"])");
  EXPECT_EQ(dtype_of_value(wide, 1), at::kBFloat16);
  EXPECT_EQ(dtype_of_value(wide, 2), at::kBFloat16);
  // Of an input in float32 it would be another number.
  const Plan exact = plan_under_autocast(steps, "[3]", R"(["float32", "float32", "float32", "bfloat16"])");
  EXPECT_EQ(dtype_of_value(exact, 1), at::kFloat);
  EXPECT_TRUE(exact.second_dtypes.empty());
}

TEST(ProgramJson, RoundTrips) {
  for (const std::string& text : {kResidualBlock, kConcatenation}) {
    const std::string whole = to_json(program_from_json(text));
    EXPECT_EQ(to_json(program_from_json(whole)), whole);
  }
  const std::string rich = R"({"inputs": 2, "integers": 2, "results": [2, 5], "steps": [
      {"op": "reshape", "inputs": [0], "sizes": [{"integer": 1}, -1, 4]},
      {"op": "split", "inputs": [1], "sizes": [2, 2], "dimension": -1},
      {"op": "batch_norm", "inputs": [3], "momentum": null, "group_name": "seven"}],
      "dtypes": ["float32", "float16", "bfloat16", "float32", "float32", "float32"]})";
  const std::string whole = to_json(program_from_json(rich));
  EXPECT_EQ(to_json(program_from_json(whole)), whole);
  for (const char* part : {R"([{"integer":1},-1,4])", R"("momentum":null)", R"("group_name":"seven")",
                           R"("dtypes":["float32","float16","bfloat16","float32","float32","float32"])"}) {
    EXPECT_PRED2(contains, whole, part);
  }
}

TEST(ProgramJson, HasDefaults) {
  const std::string whole = to_json(program_from_json(kResidualBlock));
  for (const char* part :
       {R"("integers":0)", R"("groups":1)", R"("transposed":false)", R"("bias":null)", R"("momentum":0.1)",
        R"("eps":1e-05)", R"("training":true)", R"("broadcast":false)", R"("slope":0.01)"}) {
    EXPECT_PRED2(contains, whole, part);
  }
}

TEST(ProgramJson, TakesListsForListsOnly) {
  for (const char* stride : {"2", "null", R"({"a": 1})"}) {
    const std::string program =
        std::string(R"({"inputs": 1, "results": [1], "steps": [{"op": "convolution", "inputs": [0], "weight": 0,
            "padding": [0], "dilation": [1], "stride": )") +
        stride + "}]}";
    EXPECT_THROW(program_from_json(program), c10::ValueError) << stride;
  }
}

TEST(PlanJson, ReadsOptionsImportsAndExports) {
  const Plan plan =
      plan_from_json("{\"program\": " + kConcatenation +
                     R"(, "options": {"bits": 3, "value_bits": {"1": 6}, "rounding": "nearest"}, "exports": [1],
          "imports": [{"input": 0, "copy": {"kind": "pass", "bits": 5, "slope": 0.25, "activation": "leaky_relu"}}]})");
  EXPECT_EQ(plan.options.rounding, Rounding::kNearest);
  EXPECT_EQ(plan.copies.at({1}).bits, 6);
  ASSERT_EQ(plan.imports.size(), 1);
  EXPECT_EQ(plan.imports[0].format.parts(), 2);
  EXPECT_EQ(plan.imports[0].format.activation.slope, 0.25F);
  EXPECT_EQ(plan.exports, (std::vector<Value>{{1}}));
}

TEST(PlanJson, DescribesThePlan) {
  const std::string text = to_json(plan_of(kResidualBlock));
  for (const char* part : {R"({"bits":4,"form":"copy","group_rows":256,"value":0})", R"("recomputes":[4])",
                           R"({"name":"norm_act","steps":[4,5,6]})", R"("tensors":2)"}) {
    EXPECT_PRED2(contains, text, part);
  }
}

}  // namespace
}  // namespace actnn::blocks
