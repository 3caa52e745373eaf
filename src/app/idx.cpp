#include "src/app/idx.h"

#include <fmt/core.h>

#include <array>
#include <cstddef>
#include <string>
#include <system_error>

#include "src/app/error.h"
#include "src/app/gzip_file.h"

namespace actnn::app {
namespace {

/// Far above any data set that this program reads, and small enough to allocate without thinking.
constexpr int64_t kMaximumBytes = int64_t{1} << 30;

uint32_t big_endian(const uint8_t* bytes) {
  return uint32_t{bytes[0]} << 24U | uint32_t{bytes[1]} << 16U | uint32_t{bytes[2]} << 8U | uint32_t{bytes[3]};
}

}  // namespace

IdxArray read_idx(const std::filesystem::path& path, int dimensions) {
  GzipFile reader(path);
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
