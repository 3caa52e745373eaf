#include "src/app/idx.h"

#include <fmt/core.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <limits>
#include <memory>
#include <string>
#include <system_error>

#include "src/app/error.h"

namespace actnn::app {
namespace {

/// Far above any data set that this program reads, and small enough to allocate without thinking.
constexpr int64_t kMaximumBytes = int64_t{1} << 30;

struct GzipCloser {
  void operator()(gzFile_s* file) const { gzclose(file); }
};

class Reader {
 public:
  explicit Reader(const std::filesystem::path& path) : path_(path) {
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

  /// Reads up to `size` bytes; fewer only at the end of the file.
  std::size_t read(uint8_t* destination, std::size_t size) {
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

 private:
  [[noreturn]] void fail() const {
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

  std::filesystem::path path_;
  std::unique_ptr<gzFile_s, GzipCloser> file_;
};

uint32_t big_endian(const uint8_t* bytes) {
  return uint32_t{bytes[0]} << 24U | uint32_t{bytes[1]} << 16U | uint32_t{bytes[2]} << 8U | uint32_t{bytes[3]};
}

}  // namespace

IdxArray read_idx(const std::filesystem::path& path, int dimensions) {
  Reader reader(path);
  const auto read_number = [&]() {
    std::array<uint8_t, 4> bytes{};
    if (reader.read(bytes.data(), bytes.size()) < bytes.size()) {
      throw RunError(fmt::format("{} is truncated: it ends inside its header", path.string()));
    }
    return big_endian(bytes.data());
  };

  const uint32_t expected = 0x0800U + static_cast<uint32_t>(dimensions);
  const uint32_t magic = read_number();
  if (magic != expected) {
    throw RunError(
        fmt::format("{} is not an idx file of bytes with {} dimension{}: expected the magic number {:#010x}, found "
                    "{:#010x}",
                    path.string(), dimensions, dimensions == 1 ? "" : "s", expected, magic));
  }
  IdxArray array;
  int64_t count = 1;
  for (int i = 0; i < dimensions; ++i) {
    array.shape.push_back(read_number());
    if (array.shape.back() == 0 || count > kMaximumBytes / array.shape.back()) {
      throw RunError(fmt::format("{} is damaged: dimension {} of its header has the size {}", path.string(), i,
                                 array.shape.back()));
    }
    count *= array.shape.back();
  }
  // One byte more, to notice what should not be there.
  array.data.resize(static_cast<std::size_t>(count) + 1);
  const std::size_t found = reader.read(array.data.data(), array.data.size());
  if (found != static_cast<std::size_t>(count)) {
    throw RunError(fmt::format("{} is {}: its header announces {} bytes of data, found {}", path.string(),
                               found < static_cast<std::size_t>(count) ? "truncated" : "damaged", count,
                               found < static_cast<std::size_t>(count) ? std::to_string(found) : "more"));
  }
  array.data.resize(static_cast<std::size_t>(count));
  return array;
}

std::filesystem::path find_idx(const std::filesystem::path& folder, const std::string& name) {
  for (const char* ending : {"", ".gz"}) {
    const std::filesystem::path path = folder / (name + ending);
    std::error_code error;
    if (std::filesystem::exists(path, error)) {
      return path;
    }
  }
  throw RunError(fmt::format("the data folder {} has neither {} nor {}.gz", folder.string(), name, name));
}

}  // namespace actnn::app
