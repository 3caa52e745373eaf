#pragma once

#include <stdexcept>

namespace actnn::app {

/// The command line asks for something that makes no sense: exit code 2. The text is one sentence.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Something outside the program is not as it should be (a file, a device, a disk): exit code 1. The text is one
/// sentence.
struct RunError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline constexpr int kExitSuccess = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;  ///< as a shell reports a program ended by Ctrl-C

}  // namespace actnn::app
