#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace actnn::nn {

enum class ConversionOutcome {
  kConverted,  ///< replaced by a layer of actnn::nn
  kTraversed,  ///< stays, its children were looked at
  kLeftAlone,  ///< stays, `reason` says why
};

/// What became of one module.
struct ConversionEntry {
  std::string path;  ///< as in state dictionaries; empty for the root
  std::string type;  ///< "torch::nn::Conv2d"
  ConversionOutcome outcome = ConversionOutcome::kLeftAlone;
  std::string replacement;  ///< "actnn::nn::Conv2d"; empty unless converted
  std::string reason;       ///< why it was left alone, or a remark; may be empty if not left alone
};

/// What `actnn::nn::convert` did: one entry per place in the tree, parents before children.
struct ConversionReport {
  std::vector<ConversionEntry> entries;

  int64_t count(ConversionOutcome outcome) const;

  /// The entry of a path; an error if the tree has none.
  const ConversionEntry& at(const std::string& path) const;

  /// A table: path, type, what became of it.
  std::string to_string() const;
};

std::ostream& operator<<(std::ostream& stream, const ConversionReport& report);

}  // namespace actnn::nn
