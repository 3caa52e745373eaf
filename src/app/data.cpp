#include "src/app/data.h"

#include <fmt/core.h>

#include <array>
#include <system_error>

#include "src/app/error.h"
#include "src/app/image_data.h"
#include "src/app/text_data.h"

namespace actnn::app {
namespace {

/// Where data is looked for, and what puts it there.
struct Place {
  std::array<const char*, 2> folders;
  const char* tool;
  const char* what;  ///< may be named with --data
};

constexpr Place kImages{
    {"data/fashion-mnist", "/usr/share/datasets/fashion-mnist"}, "tools/fetch-fashion-mnist", "folder"};
constexpr Place kText{{"data/jargon-text", "/usr/share/doc/jargon-text"}, "tools/fetch-jargon-text", "text"};

std::filesystem::path find(const Place& place, const std::filesystem::path& asked) {
  std::error_code error;
  if (!asked.empty()) {
    if (!std::filesystem::exists(asked, error)) {
      throw RunError(
          fmt::format("the data {} {} does not exist", &place == &kText ? "file or folder" : "folder", asked.string()));
    }
    return asked;
  }
  for (const char* folder : place.folders) {
    if (std::filesystem::is_directory(folder, error)) {
      return folder;
    }
  }
  throw RunError(fmt::format("there is no data to train on: neither {} nor {} exists; run {}, or name a {} with --data",
                             place.folders[0], place.folders[1], place.tool, place.what));
}

}  // namespace

Data open_data(const Settings& settings, const std::filesystem::path& asked, c10::Device device) {
  if (settings.is_of_text()) {
    const std::filesystem::path path = find_text(find(kText, asked));
    const Text text = read_text(path);
    return {.title = path.filename().string(),
            .path = path,
            .train = std::make_unique<TextData>(text, TextData::Part::kTrain, settings.train_images, device),
            .test = std::make_unique<TextData>(text, TextData::Part::kTest, settings.test_images, device)};
  }
  const std::filesystem::path folder = find(kImages, asked);
  if (!std::filesystem::is_directory(folder)) {
    throw RunError(fmt::format("the data folder {} does not exist", folder.string()));
  }
  return {.title = "Fashion-MNIST",
          .path = folder,
          .train = std::make_unique<ImageData>(folder, "train", settings.train_images, device),
          .test = std::make_unique<ImageData>(folder, "t10k", settings.test_images, device)};
}

}  // namespace actnn::app
