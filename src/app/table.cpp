#include "src/app/table.h"

#include <fmt/core.h>

#include <array>
#include <functional>

namespace actnn::app {
namespace {

struct Row {
  const char* title;
  std::function<double(const PhaseRecord&)> value;
  std::function<std::string(double)> format;
  std::function<std::string(double exact, double compressed)> ratio;
};

std::string bytes_text(double bytes) { return format_bytes(static_cast<int64_t>(bytes)); }

/// "6.10x less" where `larger` is indeed larger, else "1.20x more".
std::string times(double larger, double smaller, const char* wanted, const char* unwanted) {
  if (larger <= 0.0 || smaller <= 0.0) {
    return "-";
  }
  if (larger == smaller) {
    return "equal";
  }
  return larger >= smaller ? fmt::format("{:.2f}x {}", larger / smaller, wanted)
                           : fmt::format("{:.2f}x {}", smaller / larger, unwanted);
}

std::string less(double exact, double compressed) { return times(exact, compressed, "less", "more"); }

}  // namespace

std::string format_bytes(int64_t bytes) {
  constexpr int64_t kKibi = 1024;
  constexpr int64_t kMebi = 1024 * kKibi;
  constexpr int64_t kGibi = 1024 * kMebi;
  const auto in = [&](int64_t unit) { return static_cast<double>(bytes) / static_cast<double>(unit); };
  if (bytes < kMebi) {
    return fmt::format("{:.1f} KiB", in(kKibi));
  }
  if (bytes < kGibi) {
    return fmt::format("{:.1f} MiB", in(kMebi));
  }
  return fmt::format("{:.2f} GiB", in(kGibi));
}

std::string format_table(const Settings& settings, const std::optional<PhaseRecord>& exact,
                         const std::optional<PhaseRecord>& compressed) {
  const Row accuracy{"test accuracy", [](const PhaseRecord& record) { return 1e2 * record.test_accuracy.back(); },
                     [](double value) { return fmt::format("{:.2f} %", value); },
                     [](double a, double b) { return fmt::format("{:+.2f} points", b - a); }};
  const Row loss{"test loss (nats per character)", [](const PhaseRecord& record) { return record.test_loss.back(); },
                 [](double value) { return fmt::format("{:.4f}", value); },
                 [](double a, double b) { return fmt::format("{:+.4f}", b - a); }};
  const std::array<Row, 5> rows{{
      settings.is_of_text() ? loss : accuracy,
      {"activation memory held for backward",
       [](const PhaseRecord& record) { return static_cast<double>(record.activation_bytes); }, bytes_text, less},
      {"peak memory of a step", [](const PhaseRecord& record) { return static_cast<double>(record.peak_bytes); },
       bytes_text, less},
      {"step time (median)", [](const PhaseRecord& record) { return record.median_step_ms(); },
       [](double value) { return fmt::format("{:.1f} ms", value); },
       [](double a, double b) { return times(a, b, "faster", "slower"); }},
      {settings.is_of_text() ? "characters per second" : "images per second",
       [&](const PhaseRecord& record) { return record.labels_per_second(settings); },
       [](double value) { return fmt::format("{:.0f}", value); },
       [](double a, double b) { return times(b, a, "more", "fewer"); }},
  }};
  const std::string compressed_title = fmt::format("{}-bit", settings.bits);
  std::string text = fmt::format("{:<36}{:>13}{:>13}{:>15}\n", settings.model, exact ? "exact" : "",
                                 compressed ? compressed_title : "", exact && compressed ? "ratio" : "");
  for (const Row& row : rows) {
    const auto cell = [&](const std::optional<PhaseRecord>& record) {
      return record ? row.format(row.value(*record)) : std::string();
    };
    text += fmt::format("{:<36}{:>13}{:>13}{:>15}\n", row.title, cell(exact), cell(compressed),
                        exact && compressed ? row.ratio(row.value(*exact), row.value(*compressed)) : "");
  }
  return text;
}

}  // namespace actnn::app
