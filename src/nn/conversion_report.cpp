#include "actnn/nn/conversion_report.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <iomanip>
#include <sstream>

namespace actnn::nn {
namespace {

std::string shown_path(const ConversionEntry& entry) { return entry.path.empty() ? "(root)" : entry.path; }

/// "chains: 0 1 2, 4 5"
std::string shown_chains(const ConversionReport& report, const std::string& path) {
  std::string chains;
  for (const ChainEntry& entry : report.chains) {
    if (entry.path != path) {
      continue;
    }
    if (entry.layers.empty()) {
      return "no chain: " + entry.reason;
    }
    chains += chains.empty() ? "chains:" : ",";
    for (const std::string& layer : entry.layers) {
      chains += " " + layer;
    }
  }
  return chains;
}

std::string shown_outcome(const ConversionReport& report, const ConversionEntry& entry) {
  switch (entry.outcome) {
    case ConversionOutcome::kConverted:
      return "-> " + entry.replacement + (entry.reason.empty() ? "" : " (" + entry.reason + ")");
    case ConversionOutcome::kTraversed:
      return entry.reason.empty() ? shown_chains(report, entry.path) : entry.reason;
    default:
      return "left alone: " + entry.reason;
  }
}

}  // namespace

int64_t ConversionReport::count(ConversionOutcome outcome) const {
  return std::count_if(entries.begin(), entries.end(), [&](const auto& entry) { return entry.outcome == outcome; });
}

const ConversionEntry& ConversionReport::at(const std::string& path) const {
  const auto entry = std::find_if(entries.begin(), entries.end(), [&](const auto& e) { return e.path == path; });
  TORCH_CHECK_VALUE(entry != entries.end(),
                    "actnn::nn::ConversionReport: path must be that of a converted tree's module, got '", path, "'");
  return *entry;
}

std::string ConversionReport::to_string() const {
  std::ostringstream stream;
  stream << *this;
  return stream.str();
}

std::ostream& operator<<(std::ostream& stream, const ConversionReport& report) {
  size_t path_width = 0;
  size_t type_width = 0;
  for (const auto& entry : report.entries) {
    path_width = std::max(path_width, shown_path(entry).size());
    type_width = std::max(type_width, entry.type.size());
  }
  stream << report.count(ConversionOutcome::kConverted) << " converted, " << report.count(ConversionOutcome::kLeftAlone)
         << " left alone, of " << report.entries.size() << " modules\n";
  for (const auto& entry : report.entries) {
    std::ostringstream line;
    line << std::left << "  " << std::setw(static_cast<int>(path_width)) << shown_path(entry) << "  "
         << std::setw(static_cast<int>(type_width)) << entry.type << "  " << shown_outcome(report, entry);
    std::string text = line.str();
    text.erase(text.find_last_not_of(' ') + 1);
    stream << text << '\n';
  }
  return stream;
}

}  // namespace actnn::nn
