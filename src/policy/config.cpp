#include "actnn/policy/config.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <functional>
#include <iterator>
#include <string>
#include <type_traits>
#include <utility>

#include "actnn/core/bit_packing.h"
#include "actnn/core/layout.h"
#include "src/ops/rounding_names.h"

namespace actnn {
namespace {

/// A flag's text form, and how an IValue becomes one.
template <class T>
struct FlagType;

template <>
struct FlagType<bool> {
  static constexpr const char* kName = "a bool";
  static bool accepts(const c10::IValue& value) { return value.isBool(); }
  static bool from(const c10::IValue& value) { return value.toBool(); }
};

template <>
struct FlagType<int64_t> {
  static constexpr const char* kName = "an int";
  static bool accepts(const c10::IValue& value) { return value.isInt(); }
  static int64_t from(const c10::IValue& value) { return value.toInt(); }
};

template <>
struct FlagType<double> {
  static constexpr const char* kName = "a number";
  static bool accepts(const c10::IValue& value) { return value.isDouble() || value.isInt(); }
  static double from(const c10::IValue& value) {
    return value.isInt() ? static_cast<double>(value.toInt()) : value.toDouble();
  }
};

template <>
struct FlagType<Rounding> {
  static constexpr const char* kName = "a str";
  static bool accepts(const c10::IValue& value) { return value.isString(); }
  static Rounding from(const c10::IValue& value) { return rounding_of("actnn::Config", value.toStringView()); }
};

template <>
struct FlagType<std::vector<int64_t>> {
  static constexpr const char* kName = "a list of ints";
  static bool accepts(const c10::IValue& value) { return value.isIntList(); }
  static std::vector<int64_t> from(const c10::IValue& value) { return value.toIntVector(); }
};

template <class T>
struct FlagType<std::optional<T>> {
  static bool accepts(const c10::IValue& value) { return value.isNone() || FlagType<T>::accepts(value); }
  static std::optional<T> from(const c10::IValue& value) {
    return value.isNone() ? std::nullopt : std::optional(FlagType<T>::from(value));
  }
};

template <class T>
std::string type_name() {
  return FlagType<T>::kName;
}
template <>
std::string type_name<std::optional<int64_t>>() {
  return "an int or None";
}
template <>
std::string type_name<std::optional<bool>>() {
  return "a bool or None";
}
template <>
std::string type_name<std::optional<double>>() {
  return "a number or None";
}

template <class T>
c10::IValue as_value(const T& flag) {
  return flag;
}
c10::IValue as_value(Rounding rounding) { return std::string(name_of(rounding)); }

template <class T>
T from_value(const char* name, const c10::IValue& value) {
  TORCH_CHECK_TYPE(FlagType<T>::accepts(value), "actnn::Config: ", name, " must be ", type_name<T>(), ", got ", value,
                   value.isNone() ? "" : " (" + value.tagKind() + ")");
  return FlagType<T>::from(value);
}

struct Flag {
  const char* name;
  std::function<c10::IValue(const Config&)> get;
  std::function<void(Config&, const c10::IValue&)> set;
};

/// `valid`: what else a value of the right type must be.
template <class T>
Flag flag(const char* name, T Config::*member, const char* rule = "", bool (*valid)(const T&) = nullptr) {
  return {name, [member](const Config& config) { return as_value(config.*member); },
          [=](Config& config, const c10::IValue& value) {
            T converted = from_value<T>(name, value);
            TORCH_CHECK_VALUE(!valid || valid(converted), "actnn::Config: ", name, " must be ", rule, ", got ", value);
            config.*member = std::move(converted);
          }};
}

bool is_width(const int64_t& bits) { return bits >= kMinBits && bits <= kMaxBits; }

const std::vector<Flag>& flags() {
  static const std::vector<Flag> kFlags = {
      flag("compress_activation", &Config::compress_activation),
      flag("training", &Config::training),
      flag<std::vector<int64_t>>("activation_compression_bits", &Config::activation_compression_bits,
                                 "one width in 1..8 or more",
                                 [](const std::vector<int64_t>& bits) {
                                   return !bits.empty() && std::all_of(bits.begin(), bits.end(), is_width);
                                 }),
      flag<int64_t>("group_size", &Config::group_size, "a positive multiple of 32",
                    [](const int64_t& size) { return size > 0 && size % kGroupSizeMultiple == 0; }),
      flag("pergroup", &Config::pergroup),
      flag("rounding", &Config::rounding),
      flag("simulate", &Config::simulate),
      flag("enable_quantized_bn", &Config::enable_quantized_bn),
      flag("adaptive_conv_scheme", &Config::adaptive_conv_scheme),
      flag("adaptive_bn_scheme", &Config::adaptive_bn_scheme),
      flag<int64_t>("initial_bits", &Config::initial_bits, "in 1..8", is_width),
      flag("perlayer", &Config::perlayer),
      flag<int64_t>("adapt_interval", &Config::adapt_interval, "positive",
                    [](const int64_t& steps) { return steps > 0; }),
      flag("use_gradient", &Config::use_gradient),
      flag<std::optional<double>>("noise_target", &Config::noise_target, "positive or None",
                                  [](const std::optional<double>& target) { return !target || *target > 0; }),
      flag<std::optional<double>>(
          "empty_cache_threshold", &Config::empty_cache_threshold, "in 0..1 or None",
          [](const std::optional<double>& ratio) { return !ratio || (*ratio >= 0 && *ratio <= 1); }),
      flag<std::optional<int64_t>>("pipeline_threshold", &Config::pipeline_threshold,
                                   "a positive number of bytes or None",
                                   [](const std::optional<int64_t>& bytes) { return !bytes || *bytes > 0; }),
      flag<std::optional<bool>>("cudnn_benchmark_conv2d", &Config::cudnn_benchmark_conv2d),
      flag("swap", &Config::swap),
      flag("debug_memory_model", &Config::debug_memory_model),
      flag("debug_speed", &Config::debug_speed),
      flag("debug_memory_op_forward", &Config::debug_memory_op_forward),
      flag("debug_memory_op_backward", &Config::debug_memory_op_backward),
      flag("debug_remove_bn", &Config::debug_remove_bn),
      flag("debug_remove_relu", &Config::debug_remove_relu)};
  return kFlags;
}

/// The published system's two-valued view of `rounding`.
const Flag& stochastic_flag() {
  static const Flag kFlag{"stochastic",
                          [](const Config& config) { return c10::IValue(config.rounding != Rounding::kNearest); },
                          [](Config& config, const c10::IValue& value) {
                            if (!from_value<bool>("stochastic", value)) {
                              config.rounding = Rounding::kNearest;
                            } else if (config.rounding == Rounding::kNearest) {
                              config.rounding = Rounding::kDithered;
                            }
                          }};
  return kFlag;
}

const Flag& find_flag(const std::string& name) {
  if (name == stochastic_flag().name) {
    return stochastic_flag();
  }
  const auto found = std::find_if(flags().begin(), flags().end(), [&](const Flag& flag) { return flag.name == name; });
  TORCH_CHECK_VALUE(found != flags().end(), "actnn::Config: there is no flag '", name, "'; there are ", config_flags());
  return *found;
}

constexpr int64_t kGiB = int64_t{1} << 30;

void do_nothing(Config& config) {
  config.compress_activation = false;
  config.adaptive_conv_scheme = config.adaptive_bn_scheme = false;
}

void four_bits(Config& config) {
  config.activation_compression_bits = {4};
  config.adaptive_conv_scheme = config.adaptive_bn_scheme = false;
}

void less_workspace(Config& config) {
  config.cudnn_benchmark_conv2d = false;
  config.empty_cache_threshold = 0.2;
  config.pipeline_threshold = 3 * kGiB;
}

struct Level {
  std::string_view name;
  void (*apply)(Config&);
  std::string_view allocator_setting = "";
};

constexpr std::array<Level, 8> kLevels = {{
    {"L0", do_nothing},
    {"L1",
     [](Config& config) {
       four_bits(config);
       config.enable_quantized_bn = false;
     }},
    {"L2", four_bits},
    {"L3", [](Config&) {}},
    {"L3.1", less_workspace},
    {"L4",
     [](Config& config) {
       less_workspace(config);
       config.swap = true;
     }},
    {"L5",
     [](Config& config) {
       less_workspace(config);
       config.swap = true;
     },
     "expandable_segments:True"},
    {"swap",
     [](Config& config) {
       do_nothing(config);
       config.swap = true;
     }},
}};

const Level& find_level(std::string_view name) {
  const auto* const found =
      std::find_if(kLevels.begin(), kLevels.end(), [&](const Level& level) { return level.name == name; });
  TORCH_CHECK_VALUE(found != kLevels.end(), "actnn: the optimization level must be one of ", level_names(), ", got '",
                    name, "'");
  return *found;
}

}  // namespace

Config config_for_level(std::string_view level) {
  Config config;
  find_level(level).apply(config);
  return config;
}

std::string_view allocator_setting(std::string_view level) { return find_level(level).allocator_setting; }

std::vector<std::string> level_names() {
  std::vector<std::string> names;
  names.reserve(std::size(kLevels));
  for (const Level& level : kLevels) {
    names.emplace_back(level.name);
  }
  return names;
}

std::vector<std::string> config_flags() {
  std::vector<std::string> names;
  names.reserve(flags().size());
  for (const Flag& flag : flags()) {
    names.emplace_back(flag.name);
  }
  return names;
}

c10::IValue get_flag(const Config& config, const std::string& name) { return find_flag(name).get(config); }

void set_flag(Config& config, const std::string& name, const c10::IValue& value) { find_flag(name).set(config, value); }

}  // namespace actnn
