#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "actnn/nn/chain.h"

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

/// A chain that was made of layers in a row, or why a Sequential got none.
struct ChainEntry {
  std::string path;                 ///< of the Sequential
  std::vector<std::string> layers;  ///< the children's names, in order; empty if there is no chain
  std::string reason;               ///< why there is none; empty if there is one
  Chain chain;                      ///< its plan and the bytes that it saved; keeps the layers alive
};

/// What `actnn::nn::convert` did: one entry per place in the tree, parents before children.
struct ConversionReport {
  std::vector<ConversionEntry> entries;
  /// In each Sequential, if chains were asked for: its chains, or one entry with a reason.
  std::vector<ChainEntry> chains = {};

  int64_t count(ConversionOutcome outcome) const;

  /// The entry of a path; an error if the tree has none.
  const ConversionEntry& at(const std::string& path) const;

  /// A table: path, type, what became of it, and the chains of a Sequential.
  std::string to_string() const;
};

std::ostream& operator<<(std::ostream& stream, const ConversionReport& report);

}  // namespace actnn::nn
