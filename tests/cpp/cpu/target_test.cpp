#include "actnn/cpu/target.h"

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <stdexcept>

#include "actnn/cpu/mask.h"

namespace actnn::cpu {
namespace {

TEST(Target, EveryAvailableOneCanBeSelected) {
  const std::vector<std::string> targets = available_targets();
  ASSERT_FALSE(targets.empty());
  EXPECT_EQ(targets.back(), "reference");
  for (const std::string& target : targets) {
    select_target(target);
    EXPECT_EQ(current_target(), target);
  }
  select_target(targets.front());
}

TEST(Target, AskingLeavesTheSelectedOne) {
  for (const std::string& target : available_targets()) {
    select_target(target);
    const size_t index = hwy::GetChosenTarget().GetIndex();
    EXPECT_EQ(current_target(), target);
    EXPECT_EQ(available_targets().back(), "reference");
    EXPECT_EQ(hwy::GetChosenTarget().GetIndex(), index) << target;
  }
  select_target(available_targets().front());
}

TEST(Target, AnUnknownNameIsRefusedWithTheChoices) {
  const std::string before = current_target();
  try {
    select_target("AVX9");
    FAIL() << "accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("reference, got \"AVX9\""), std::string::npos) << error.what();
  }
  EXPECT_EQ(current_target(), before);
}

// Run by tests of their own with ACTNN_CPU_TARGET set (CMakeLists.txt).
TEST(TargetEnvironment, DISABLED_reference) { EXPECT_EQ(current_target(), "reference"); }

TEST(TargetEnvironment, DISABLED_nonsense) {
  const float input = 1.0F;
  float output = 0.0F;
  uint8_t mask = 0;
  EXPECT_THROW(relu(&input, ElementType::kFloat32, 1, &output, &mask, 0, 1), std::invalid_argument);
}

}  // namespace
}  // namespace actnn::cpu
