#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace actnn::app {

/// A folder for one test, removed at its end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

  /// Names of the entries, sorted.
  std::vector<std::string> entries() const;

 private:
  std::filesystem::path path_;
};

std::string read_file(const std::filesystem::path& path);
void write_file(const std::filesystem::path& path, std::string_view bytes);
void write_gzip(const std::filesystem::path& path, std::string_view bytes);

/// An idx file of bytes with the given magic number, sizes and elements.
std::string idx_bytes(uint32_t magic, const std::vector<uint32_t>& shape, std::string_view data);

/// Fashion-MNIST's four files with `images` random images in each half.
void write_data(const std::filesystem::path& folder, uint32_t images);

/// The text of the `Error` that `action` throws; fails the test where it throws none.
template <typename Error, typename Action>
std::string message_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error was thrown";
  return {};
}

}  // namespace actnn::app
