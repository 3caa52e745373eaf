#include "src/app/atomic_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <system_error>
#include <utility>

#include "src/app/error.h"

namespace actnn::app {
namespace {

std::string message(int error) { return std::error_code(error, std::generic_category()).message(); }

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

/// Makes a rename survive a power cut. File systems that cannot flush a folder are left alone.
void flush_folder(const std::filesystem::path& path) {
  const int descriptor = open(folder_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor >= 0) {
    fsync(descriptor);
    close(descriptor);
  }
}

/// A file made with mkstemp is the owner's alone; give it the rights that an ordinary new file has.
void give_usual_rights(int descriptor) {
  const mode_t mask = umask(0);
  umask(mask);
  fchmod(descriptor, 0666 & ~mask);
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  std::error_code error;
  // A link stays a link: the file it points to is replaced.
  if (std::filesystem::is_symlink(path_, error)) {
    path_ = std::filesystem::weakly_canonical(path_, error);
  }
  const std::filesystem::file_status status = std::filesystem::status(path_, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    descriptor_ = open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  } else {
    temporary_ = path_.string() + ".part-XXXXXX";
    descriptor_ = mkstemp(temporary_.data());
    if (descriptor_ >= 0) {
      give_usual_rights(descriptor_);
    }
  }
  if (descriptor_ < 0) {
    temporary_.clear();
    fail(errno);
  }
}

AtomicFile::~AtomicFile() { discard(); }

void AtomicFile::fail(int error) const {
  throw RunError(fmt::format("cannot write {}: {}", path_.string(), message(error)));
}

void AtomicFile::discard() noexcept {
  if (descriptor_ >= 0) {
    close(descriptor_);
    descriptor_ = -1;
  }
  if (!temporary_.empty()) {
    unlink(temporary_.c_str());
    temporary_.clear();
  }
}

void AtomicFile::write(const void* data, std::size_t size) {
  const char* rest = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(descriptor_, rest, size);
    if (written < 0) {
      if (errno == EINTR) {
        continue;
      }
      fail(errno);
    }
    rest += written;
    size -= static_cast<std::size_t>(written);
  }
}

void AtomicFile::commit() {
  // A device has nothing to flush, and says so.
  if (!temporary_.empty() && fsync(descriptor_) != 0) {
    fail(errno);
  }
  const int descriptor = descriptor_;
  descriptor_ = -1;
  if (close(descriptor) != 0) {
    fail(errno);
  }
  if (!temporary_.empty()) {
    if (rename(temporary_.c_str(), path_.c_str()) != 0) {
      fail(errno);
    }
    temporary_.clear();
    flush_folder(path_);
  }
}

void require_writable(const std::filesystem::path& path) { const AtomicFile probe(path); }

void replace_symlink(const std::filesystem::path& target, const std::filesystem::path& link) {
  const std::string temporary = fmt::format("{}.part-{}", link.string(), getpid());
  unlink(temporary.c_str());
  if (symlink(target.c_str(), temporary.c_str()) != 0 || rename(temporary.c_str(), link.c_str()) != 0) {
    const int error = errno;
    unlink(temporary.c_str());
    throw RunError(fmt::format("cannot make the link {}: {}", link.string(), message(error)));
  }
}

void make_directories(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) {
    throw RunError(fmt::format("cannot make the folder {}: {}", path.string(), error.message()));
  }
}

}  // namespace actnn::app
