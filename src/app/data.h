#pragma once

#include <c10/core/Device.h>

#include <filesystem>
#include <memory>
#include <string>

#include "src/app/dataset.h"
#include "src/app/settings.h"

namespace actnn::app {

/// What a run trains and tests on.
struct Data {
  std::string title;
  std::filesystem::path path;  ///< a folder of images, or a text
  std::unique_ptr<Dataset> train;
  std::unique_ptr<Dataset> test;
};

/// The data that the settings' model is for, as many examples as they say. `asked`: a folder, for a text also the file
/// itself; if it is empty, the first default folder that exists. RunError where it cannot be used, UsageError for more
/// examples than there are.
Data open_data(const Settings& settings, const std::filesystem::path& asked, c10::Device device);

}  // namespace actnn::app
