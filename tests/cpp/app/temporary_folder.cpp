#include "tests/cpp/app/temporary_folder.h"

#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <system_error>

namespace actnn::app {

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "actnn-test-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) {
    throw std::system_error(errno, std::generic_category(), pattern);
  }
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() { std::filesystem::remove_all(path_); }

std::vector<std::string> TemporaryFolder::entries() const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(path_)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

void write_gzip(const std::filesystem::path& path, std::string_view bytes) {
  gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
  gzclose(file);
}

std::string idx_bytes(uint32_t magic, const std::vector<uint32_t>& shape, std::string_view data) {
  std::string bytes;
  const auto add = [&](uint32_t number) {
    for (const int shift : {24, 16, 8, 0}) {
      bytes += static_cast<char>(number >> shift);
    }
  };
  add(magic);
  for (const uint32_t size : shape) {
    add(size);
  }
  bytes += data;
  return bytes;
}

void write_data(const std::filesystem::path& folder, uint32_t images) {
  std::minstd_rand random(images);
  for (const char* split : {"train", "t10k"}) {
    std::string pixels(std::size_t{images} * 28 * 28, '\0');
    std::string labels(images, '\0');
    for (char& pixel : pixels) {
      pixel = static_cast<char>(random() % 256);
    }
    for (char& label : labels) {
      label = static_cast<char>(random() % 10);
    }
    write_file(folder / (std::string(split) + "-images-idx3-ubyte"), idx_bytes(0x803, {images, 28, 28}, pixels));
    write_file(folder / (std::string(split) + "-labels-idx1-ubyte"), idx_bytes(0x801, {images}, labels));
  }
}

}  // namespace actnn::app
