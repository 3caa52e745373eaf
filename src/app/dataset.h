#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <filesystem>
#include <string>

namespace actnn::app {

inline constexpr int64_t kClasses = 10;

/// Images with their labels.
struct Batch {
  at::Tensor images;  ///< float32, [N, 1, 28, 28], normalized to zero mean and unit variance over the data set
  at::Tensor labels;  ///< int64, [N], from 0 to kClasses - 1
};

/// One half of Fashion-MNIST.
class Dataset {
 public:
  /// `split` is "train" or "t10k". `limit`: use only the first images; 0 for all. Damaged or missing files, wrong
  /// counts and a limit beyond the number of images are errors that say what was expected and found.
  Dataset(const std::filesystem::path& folder, const std::string& split, int64_t limit, c10::Device device);

  int64_t size() const { return labels_.size(0); }

  /// What it takes on its device.
  int64_t bytes() const { return static_cast<int64_t>(images_.nbytes() + labels_.nbytes()); }

  /// Of the images and labels in use.
  uint32_t checksum() const { return checksum_; }

  /// The images at `indices`, an int64 tensor.
  Batch batch(const at::Tensor& indices) const;

  /// The images from `begin` to before `end`.
  Batch range(int64_t begin, int64_t end) const;

 private:
  at::Tensor images_;  // uint8, [N, 1, 28, 28]
  at::Tensor labels_;
  uint32_t checksum_ = 0;
};

/// `folder` if not empty, else the first of data/fashion-mnist and /usr/share/datasets/fashion-mnist that exists.
std::filesystem::path find_data_folder(const std::filesystem::path& folder);

}  // namespace actnn::app
