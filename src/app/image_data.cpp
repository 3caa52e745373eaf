#include "src/app/image_data.h"

#include <ATen/ops/empty.h>
#include <fmt/core.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>

#include "src/app/error.h"
#include "src/app/idx.h"

namespace actnn::app {
namespace {

constexpr int64_t kSide = 28;
// Of the 60,000 training images, in units of a pixel's 0 to 255.
constexpr double kMean = 72.94;
constexpr double kDeviation = 90.02;

Batch normalized(const at::Tensor& images, const at::Tensor& labels) {
  return {images.to(at::kFloat).sub_(kMean).mul_(1.0 / kDeviation), labels};
}

}  // namespace

ImageData::ImageData(const std::filesystem::path& folder, const std::string& split, int64_t limit, c10::Device device) {
  const std::filesystem::path images_path = find_idx(folder, split + "-images-idx3-ubyte");
  const std::filesystem::path labels_path = find_idx(folder, split + "-labels-idx1-ubyte");
  const IdxArray images = read_idx(images_path, 3);
  const IdxArray labels = read_idx(labels_path, 1);
  if (images.shape[1] != kSide || images.shape[2] != kSide) {
    throw RunError(fmt::format("{} must hold images of {} x {} pixels, found {} x {}", images_path.string(), kSide,
                               kSide, images.shape[1], images.shape[2]));
  }
  if (images.shape[0] != labels.shape[0]) {
    throw RunError(fmt::format("{} has {} images, but {} has {} labels", images_path.string(), images.shape[0],
                               labels_path.string(), labels.shape[0]));
  }
  const auto strange =
      std::find_if(labels.data.begin(), labels.data.end(), [](uint8_t label) { return label >= kClasses; });
  if (strange != labels.data.end()) {
    throw RunError(fmt::format("{} must hold labels from 0 to {}, found {} at position {}", labels_path.string(),
                               kClasses - 1, *strange, strange - labels.data.begin()));
  }
  const int64_t available = images.shape[0];
  if (limit > available) {
    throw UsageError(fmt::format("--{}-images {} is more than the {} images in {}", split == "train" ? "train" : "test",
                                 limit, available, images_path.string()));
  }

  const int64_t count = limit == 0 ? available : limit;
  const std::size_t bytes = static_cast<std::size_t>(count * kSide * kSide);
  at::Tensor raw_images = at::empty({count, 1, kSide, kSide}, at::kByte);
  at::Tensor raw_labels = at::empty({count}, at::kByte);
  std::memcpy(raw_images.mutable_data_ptr(), images.data.data(), bytes);
  std::memcpy(raw_labels.mutable_data_ptr(), labels.data.data(), static_cast<std::size_t>(count));
  const auto add = [this](const uint8_t* data, std::size_t size) {
    checksum_ = static_cast<uint32_t>(crc32_z(checksum_, data, size));
  };
  add(images.data.data(), bytes);
  add(labels.data.data(), static_cast<std::size_t>(count));
  images_ = raw_images.to(device);
  labels_ = raw_labels.to(device).to(at::kLong);
}

Batch ImageData::batch(const at::Tensor& indices) const {
  const at::Tensor on_device = indices.to(images_.device());
  return normalized(images_.index_select(0, on_device), labels_.index_select(0, on_device));
}

Batch ImageData::range(int64_t begin, int64_t end) const {
  return normalized(images_.slice(0, begin, end), labels_.slice(0, begin, end));
}

}  // namespace actnn::app
