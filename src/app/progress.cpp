#include "src/app/progress.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cmath>
#include <vector>

#include "src/app/table.h"

namespace actnn::app {
namespace {

constexpr auto kTerminalInterval = std::chrono::milliseconds(100);
constexpr auto kLogInterval = std::chrono::seconds(10);
constexpr double kForget = 0.1;  // the weight of the newest step in the averages

std::size_t terminal_width(std::FILE* stream) {
  winsize size{};
  if (ioctl(fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    return size.ws_col;
  }
  return 80;
}

std::string duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::lround(seconds));
  const int64_t minutes = whole / 60;
  return minutes < 60 ? fmt::format("{}:{:02}", minutes, whole % 60)
                      : fmt::format("{}:{:02}:{:02}", minutes / 60, minutes % 60, whole % 60);
}

/// A part of the line.
struct Field {
  std::string text;
  int dispensability;  // those with the highest go first where the line is too long
};

std::string joined(const std::vector<Field>& fields) {
  std::string line;
  for (const Field& field : fields) {
    line += (line.empty() ? "" : "  ") + field.text;
  }
  return line;
}

}  // namespace

Progress::Progress(std::FILE* stream)
    : stream_(stream), terminal_(isatty(fileno(stream)) == 1), last_shown_(Clock::now()) {}

Progress::~Progress() {
  if (shown_) {
    std::fputs("\n", stream_);
    std::fflush(stream_);
  }
}

void Progress::step(const ProgressStep& step) {
  const bool fresh = step.phase != phase_;
  if (fresh || step.epoch != epoch_) {
    correct_ = 0;
    units_ = 0;
  }
  phase_ = step.phase;
  epoch_ = step.epoch;
  correct_ += step.correct.value_or(0);
  units_ += step.units;
  loss_ = fresh ? step.loss : loss_ + kForget * (step.loss - loss_);
  seconds_ = fresh ? step.seconds : seconds_ + kForget * (step.seconds - seconds_);

  const Clock::time_point now = Clock::now();
  const bool last = step.step == step.steps;
  if (terminal_) {
    if (last || now - last_shown_ >= kTerminalInterval) {
      last_shown_ = now;
      rewrite(text_of(step, terminal_width(stream_) - 1));
    }
  } else if (last || now - last_shown_ >= kLogInterval) {
    last_shown_ = now;
    line(text_of(step, std::string::npos));
  }
}

std::string Progress::text_of(const ProgressStep& step, std::size_t width) const {
  std::vector<Field> fields{
      {fmt::format("{:<10}", step.phase), 0},
      {fmt::format("epoch {}/{}", step.epoch, step.epochs), 2},
      {fmt::format("step {}/{}", step.step, step.steps), 1},
      {fmt::format("loss {:.3f}", loss_), 3},
      {fmt::format("{:.0f} {}/s", static_cast<double>(step.units) / seconds_, step.unit), 5},
      {fmt::format("activations {}", format_bytes(step.activation_bytes)), 1},
      {fmt::format("{} left", duration(static_cast<double>(step.steps_left) * seconds_)), 1},
  };
  if (step.correct) {
    const double accuracy = static_cast<double>(correct_) / static_cast<double>(units_);
    fields.insert(fields.begin() + 4, {fmt::format("accuracy {:.1f} %", 1e2 * accuracy), 4});
  }
  for (int dispensable = 5; dispensable > 0 && joined(fields).size() > width; --dispensable) {
    std::erase_if(fields, [&](const Field& field) { return field.dispensability == dispensable; });
  }
  return joined(fields);
}

void Progress::rewrite(const std::string& text) {
  fmt::print(stream_, "\r{}\x1b[K", text);
  std::fflush(stream_);
  shown_ = true;
}

void Progress::clear() {
  if (shown_) {
    std::fputs("\r\x1b[K", stream_);
    shown_ = false;
  }
}

void Progress::line(const std::string& text) {
  clear();
  fmt::print(stream_, "{}\n", text);
  std::fflush(stream_);
}

}  // namespace actnn::app
