#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "src/app/dataset.h"

namespace actnn::app {

/// A text, its characters numbered in the order of their code points.
struct Text {
  std::filesystem::path path;
  std::u32string alphabet;          ///< the characters that are in it, ascending
  std::vector<int32_t> characters;  ///< places in the alphabet
};

/// Reads a text in UTF-8, plain or compressed with gzip. RunError where it cannot be read, or is something else.
Text read_text(const std::filesystem::path& path);

/// `path` itself, or the only file in that folder whose name ends in .txt or .txt.gz; RunError where there is not
/// exactly one.
std::filesystem::path find_text(const std::filesystem::path& path);

/// One part of a text: its first nine tenths to train on, the rest for the test. An example is a sequence of kContext
/// characters. Inputs: int64, [N, kContext], the characters; labels: the same, those that come next.
class TextData : public Dataset {
 public:
  enum class Part { kTrain, kTest };
  static constexpr int64_t kContext = 128;

  /// `limit`: use only the first sequences; 0 for all. RunError for a text that is too short, UsageError for a limit
  /// beyond the number of sequences.
  TextData(const Text& text, Part part, int64_t limit, c10::Device device);

  int64_t size() const override { return sequences_.size(0); }
  int64_t classes() const override { return classes_; }
  int64_t bytes() const override { return static_cast<int64_t>(characters_.nbytes()); }
  uint32_t checksum() const override { return checksum_; }
  Batch batch(const at::Tensor& indices) const override;
  Batch range(int64_t begin, int64_t end) const override;

 private:
  int64_t classes_;
  at::Tensor characters_;  // int32
  at::Tensor sequences_;   // [N, kContext + 1], a view of them: the last one of each is the first one of the next
  uint32_t checksum_ = 0;
};

}  // namespace actnn::app
