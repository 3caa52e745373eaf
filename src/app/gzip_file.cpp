#include "src/app/gzip_file.h"

#include <fmt/core.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <system_error>

#include "src/app/error.h"

namespace actnn::app {

GzipFile::GzipFile(const std::filesystem::path& path) : path_(path) {
  if (std::filesystem::is_directory(path)) {
    throw RunError(fmt::format("cannot read {}: it is a folder", path_.string()));
  }
  errno = 0;
  file_.reset(gzopen(path.c_str(), "rb"));
  if (file_ == nullptr) {
    throw RunError(
        fmt::format("cannot read {}: {}", path_.string(), std::error_code(errno, std::generic_category()).message()));
  }
  gzbuffer(file_.get(), 1U << 17U);
}

std::size_t GzipFile::read(uint8_t* destination, std::size_t size) {
  std::size_t total = 0;
  while (total < size) {
    const std::size_t piece = std::min<std::size_t>(size - total, std::numeric_limits<int>::max());
    const int got = gzread(file_.get(), destination + total, static_cast<unsigned>(piece));
    if (got < 0) {
      fail();
    }
    if (got == 0) {
      break;
    }
    total += static_cast<std::size_t>(got);
  }
  // zlib hands out the readable part of a truncated stream first, and reports the damage beside it.
  int error = Z_OK;
  gzerror(file_.get(), &error);
  if (error != Z_OK) {
    fail();
  }
  return total;
}

void GzipFile::fail() const {
  int error = Z_OK;
  const char* text = gzerror(file_.get(), &error);
  if (error == Z_BUF_ERROR) {
    throw RunError(fmt::format("{} is truncated: the compressed data ends early", path_.string()));
  }
  if (error == Z_ERRNO) {
    throw RunError(
        fmt::format("cannot read {}: {}", path_.string(), std::error_code(errno, std::generic_category()).message()));
  }
  throw RunError(fmt::format("{} is damaged: {}", path_.string(), text));
}

}  // namespace actnn::app
