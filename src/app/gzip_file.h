#pragma once

#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>

namespace actnn::app {

/// Reads a file, plain or compressed with gzip. What goes wrong is a RunError that names the file.
class GzipFile {
 public:
  explicit GzipFile(const std::filesystem::path& path);

  /// Reads up to `size` bytes; fewer only at the end of the file.
  std::size_t read(uint8_t* destination, std::size_t size);

 private:
  struct Closer {
    void operator()(gzFile_s* file) const { gzclose(file); }
  };

  [[noreturn]] void fail() const;

  std::filesystem::path path_;
  std::unique_ptr<gzFile_s, Closer> file_;
};

}  // namespace actnn::app
