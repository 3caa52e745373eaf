#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

namespace actnn::app {

/// A file that appears whole or not at all: it is written beside its place, flushed to the disk and renamed. Every
/// failure (a full disk, say) is a RunError that names the file; an existing file is then still the old one.
///
/// A place that is no regular file (a device, a pipe) is written to directly.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();  ///< without `commit`, removes what was written
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, std::size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }

  /// Puts the file in its place.
  void commit();

 private:
  [[noreturn]] void fail(int error) const;
  void discard() noexcept;

  std::filesystem::path path_;
  std::string temporary_;  ///< empty: writes to path_ itself
  int descriptor_ = -1;
};

/// Throws RunError unless a file can be written at `path`; leaves nothing behind. To be called before hours of work.
void require_writable(const std::filesystem::path& path);

/// Makes `link` a symbolic link to `target` (as written, relative to the link's folder), replacing an older link
/// atomically.
void replace_symlink(const std::filesystem::path& target, const std::filesystem::path& link);

/// Makes a folder and its parents.
void make_directories(const std::filesystem::path& path);

}  // namespace actnn::app
