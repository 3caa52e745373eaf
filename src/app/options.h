#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>

#include "src/app/settings.h"

namespace actnn::app {

/// What `actnn train` was asked for.
struct TrainOptions {
  Settings settings;
  std::set<std::string> given;  ///< the names of the fields of `settings` that the command line names

  std::filesystem::path data;  ///< empty: the first default folder that exists
  std::filesystem::path output = "runs";
  std::string name;  ///< empty: made from the time and the settings
  std::filesystem::path save;
  std::filesystem::path resume;
  int64_t threads = 0;     ///< 0: torch's default
  int64_t stop_after = 0;  ///< steps of this call; 0: to the end
};

struct Command {
  enum class Kind { kTrain, kInfo };
  Kind kind = Kind::kInfo;
  TrainOptions train;
};

/// Reads the command line. Nothing for --help and --version, which are printed here; UsageError where it makes no
/// sense.
std::optional<Command> parse_command_line(int argc, const char* const* argv, const std::string& version);

/// The settings of a resumed run: the checkpoint's. UsageError where an option that was given contradicts them.
Settings resumed_settings(const TrainOptions& options, const Settings& saved);

}  // namespace actnn::app
