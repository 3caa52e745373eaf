// The main function of test programs that use torch: every test starts from the same random numbers, alone or with
// others.
#include <ATen/Context.h>
#include <gtest/gtest.h>

namespace {

class SeedsTorch : public testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo& /*test*/) override { at::manual_seed(0); }
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  testing::UnitTest::GetInstance()->listeners().Append(new SeedsTorch);  // which deletes it
  return RUN_ALL_TESTS();
}
