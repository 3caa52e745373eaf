#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <filesystem>
#include <string>

#include "src/app/dataset.h"

namespace actnn::app {

/// One half of Fashion-MNIST. Inputs: float32, [N, 1, 28, 28], normalized to zero mean and unit variance over the data
/// set; labels: [N], from 0 to kClasses - 1.
class ImageData : public Dataset {
 public:
  static constexpr int64_t kClasses = 10;

  /// `split` is "train" or "t10k". `limit`: use only the first images; 0 for all. Damaged or missing files, wrong
  /// counts and a limit beyond the number of images are errors that say what was expected and found.
  ImageData(const std::filesystem::path& folder, const std::string& split, int64_t limit, c10::Device device);

  int64_t size() const override { return labels_.size(0); }
  int64_t classes() const override { return kClasses; }
  int64_t bytes() const override { return static_cast<int64_t>(images_.nbytes() + labels_.nbytes()); }
  uint32_t checksum() const override { return checksum_; }
  Batch batch(const at::Tensor& indices) const override;
  Batch range(int64_t begin, int64_t end) const override;

 private:
  at::Tensor images_;  // uint8, [N, 1, 28, 28]
  at::Tensor labels_;
  uint32_t checksum_ = 0;
};

}  // namespace actnn::app
