#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

namespace actnn::app {

struct ProgressStep {
  std::string phase;
  int64_t epoch = 0;  ///< from 1
  int64_t epochs = 0;
  int64_t step = 0;  ///< done in this epoch
  int64_t steps = 0;
  double loss = 0.0;
  std::string unit = "images";       ///< or "characters"
  int64_t units = 0;                 ///< of the step
  std::optional<int64_t> correct{};  ///< of them; none: nobody has counted
  double seconds = 0.0;
  int64_t activation_bytes = 0;
  int64_t steps_left = 0;  ///< in all phases and epochs
};

/// Shows how training goes: on a terminal one line that is rewritten, elsewhere a line every ten seconds and at the end
/// of each epoch.
class Progress {
 public:
  explicit Progress(std::FILE* stream);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void step(const ProgressStep& step);

  /// A line that stays.
  void line(const std::string& text);

 private:
  using Clock = std::chrono::steady_clock;

  /// In up to `width` characters, as long as that can be done by leaving things out.
  std::string text_of(const ProgressStep& step, std::size_t width) const;
  void rewrite(const std::string& text);
  void clear();

  std::FILE* stream_;
  bool terminal_;
  bool shown_ = false;  ///< a line is there to be rewritten
  Clock::time_point last_shown_;

  // Averages over the last steps or so.
  std::string phase_;
  double loss_ = 0.0;
  double seconds_ = 0.0;
  int64_t epoch_ = 0;
  int64_t correct_ = 0;
  int64_t units_ = 0;
};

}  // namespace actnn::app
