#include "src/app/data.h"

#include <gtest/gtest.h>

#include "src/app/error.h"
#include "src/app/text_data.h"
#include "tests/cpp/app/temporary_folder.h"

namespace actnn::app {
namespace {

Settings settings_of(const char* model) {
  Settings settings;
  settings.model = model;
  return settings;
}

TEST(OpenData, ReadsWhatTheModelIsFor) {
  const TemporaryFolder folder;
  write_data(folder.path(), 20);
  write_file(folder / "a.txt", std::string(3000, 'a'));
  const Data images = open_data(settings_of("mlp"), folder.path(), c10::kCPU);
  EXPECT_EQ(images.title, "Fashion-MNIST");
  EXPECT_EQ(images.path, folder.path());
  EXPECT_EQ(images.train->size(), 20);
  EXPECT_EQ(images.train->classes(), 10);
  for (const std::filesystem::path& path : {folder.path(), folder / "a.txt"}) {
    const Data text = open_data(settings_of("gpt"), path, c10::kCPU);
    EXPECT_EQ(text.title, "a.txt");
    EXPECT_EQ(text.path, folder / "a.txt");
    EXPECT_EQ(text.train->size(), 2699 / 128);
    EXPECT_EQ(text.test->size(), 2);
    EXPECT_EQ(text.test->classes(), 1);
  }
}

TEST(OpenData, NamesWhatIsMissing) {
  const TemporaryFolder folder;
  const std::filesystem::path missing = folder / "missing";
  const auto error_of = [&](const char* model, const std::filesystem::path& path) {
    return message_of<RunError>([&] { open_data(settings_of(model), path, c10::kCPU); });
  };
  EXPECT_EQ(error_of("mlp", missing), "the data folder " + missing.string() + " does not exist");
  EXPECT_EQ(error_of("gpt", missing), "the data file or folder " + missing.string() + " does not exist");
  EXPECT_EQ(error_of("gpt", folder.path()),
            "the data folder " + folder.path().string() + " must hold one text, a file .txt or .txt.gz; found none");
  write_file(folder / "a.txt", "a");
  write_file(folder / "b.txt.gz", "b");
  EXPECT_EQ(error_of("gpt", folder.path()),
            "the data folder " + folder.path().string() + " must hold one text, a file .txt or .txt.gz; found 2");
  EXPECT_EQ(error_of("mlp", folder / "a.txt"), "the data folder " + (folder / "a.txt").string() + " does not exist");
}

}  // namespace
}  // namespace actnn::app
