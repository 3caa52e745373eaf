#include "actnn/policy/config.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <string>

namespace actnn {
namespace {

TEST(Config, LevelsAreThePublishedOnes) {
  const Config l3 = config_for_level("L3");
  EXPECT_EQ(l3, Config{});
  EXPECT_EQ(l3.activation_compression_bits, (std::vector<int64_t>{2, 8, 8}));
  EXPECT_TRUE(l3.adaptive_conv_scheme && l3.adaptive_bn_scheme && l3.perlayer && l3.pergroup && !l3.swap);

  EXPECT_FALSE(config_for_level("L0").compress_activation);
  EXPECT_EQ(config_for_level("L1").activation_compression_bits, std::vector<int64_t>{4});
  EXPECT_FALSE(config_for_level("L1").enable_quantized_bn);
  EXPECT_TRUE(config_for_level("L2").enable_quantized_bn);
  EXPECT_FALSE(config_for_level("L2").adaptive_conv_scheme || config_for_level("L2").adaptive_bn_scheme);

  const Config light = config_for_level("L3.1");
  EXPECT_EQ(Config().cudnn_benchmark_conv2d, std::nullopt);
  EXPECT_EQ(light.cudnn_benchmark_conv2d, std::optional(false));
  EXPECT_FALSE(light.swap);
  EXPECT_EQ(light.empty_cache_threshold, 0.2);
  EXPECT_EQ(light.pipeline_threshold, int64_t{3} << 30);
  EXPECT_TRUE(config_for_level("L4").swap && config_for_level("L4").compress_activation);
  EXPECT_EQ(config_for_level("L5"), config_for_level("L4"));
  EXPECT_TRUE(config_for_level("swap").swap && !config_for_level("swap").compress_activation);
}

TEST(Config, OnlyL5NeedsTheAllocator) {
  for (const std::string& level : level_names()) {
    EXPECT_EQ(allocator_setting(level).empty(), level != "L5") << level;
  }
}

TEST(Config, AnUnknownLevelNamesTheKnownOnes) {
  try {
    config_for_level("L9");
    FAIL();
  } catch (const c10::ValueError& error) {
    EXPECT_NE(std::string(error.what()).find("must be one of L0 L1 L2 L3 L3.1 L4 L5 swap, got 'L9'"), std::string::npos)
        << error.what();
  }
}

TEST(Config, FlagsAreReadAndWrittenByName) {
  Config config;
  for (const std::string& name : config_flags()) {
    set_flag(config, name, get_flag(config, name));
  }
  EXPECT_EQ(config, Config{});
  set_flag(config, "group_size", 128);
  set_flag(config, "activation_compression_bits", std::vector<int64_t>{3});
  set_flag(config, "empty_cache_threshold", 1);
  set_flag(config, "noise_target", 0.1);
  set_flag(config, "swap", true);
  EXPECT_EQ(config.group_size, 128);
  EXPECT_EQ(config.activation_compression_bits, std::vector<int64_t>{3});
  EXPECT_EQ(config.empty_cache_threshold, 1.0);
  EXPECT_EQ(config.noise_target, 0.1);
  EXPECT_TRUE(config.swap);
  set_flag(config, "noise_target", c10::IValue());
  EXPECT_FALSE(config.noise_target);
}

TEST(Config, WrongValuesAreRefusedAndChangeNothing) {
  Config config;
  EXPECT_THROW(set_flag(config, "no_such_flag", 1), c10::ValueError);
  EXPECT_THROW(set_flag(config, "group_size", 33), c10::ValueError);
  EXPECT_THROW(set_flag(config, "group_size", 0), c10::ValueError);
  EXPECT_THROW(set_flag(config, "initial_bits", 9), c10::ValueError);
  EXPECT_THROW(set_flag(config, "activation_compression_bits", std::vector<int64_t>{}), c10::ValueError);
  EXPECT_THROW(set_flag(config, "activation_compression_bits", std::vector<int64_t>{2, 0}), c10::ValueError);
  EXPECT_THROW(set_flag(config, "noise_target", -1.0), c10::ValueError);
  EXPECT_THROW(set_flag(config, "pipeline_threshold", 0), c10::ValueError);
  EXPECT_THROW(set_flag(config, "empty_cache_threshold", 1.5), c10::ValueError);
  EXPECT_THROW(set_flag(config, "swap", 1), c10::TypeError);
  EXPECT_THROW(set_flag(config, "group_size", 64.0), c10::TypeError);
  EXPECT_THROW(set_flag(config, "group_size", c10::IValue()), c10::TypeError);
  EXPECT_EQ(config, Config{});
}

}  // namespace
}  // namespace actnn
