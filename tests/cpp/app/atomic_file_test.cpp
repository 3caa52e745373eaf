#include "src/app/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>

#include "src/app/error.h"
#include "tests/cpp/app/temporary_folder.h"

namespace actnn::app {
namespace {

using testing::ElementsAre;

TEST(AtomicFile, AppearsOnlyWithCommit) {
  const TemporaryFolder folder;
  AtomicFile file(folder / "a");
  file.write("hel");
  file.write("lo");
  EXPECT_FALSE(std::filesystem::exists(folder / "a"));
  file.commit();
  EXPECT_EQ(read_file(folder / "a"), "hello");
  EXPECT_THAT(folder.entries(), ElementsAre("a"));
}

TEST(AtomicFile, HasTheRightsOfAnOrdinaryFile) {
  const TemporaryFolder folder;
  const mode_t mask = umask(022);
  AtomicFile(folder / "a").commit();
  umask(mask);
  struct stat status {};
  ASSERT_EQ(stat((folder / "a").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0644U);
}

TEST(AtomicFile, LeavesTheOldFileWithoutCommit) {
  const TemporaryFolder folder;
  write_file(folder / "a", "old");
  AtomicFile(folder / "a").write("new");
  EXPECT_EQ(read_file(folder / "a"), "old");
  EXPECT_THAT(folder.entries(), ElementsAre("a"));
}

TEST(AtomicFile, ReplacesTheFileBehindALink) {
  const TemporaryFolder folder;
  write_file(folder / "a", "old");
  std::filesystem::create_symlink("a", folder / "link");
  AtomicFile file(folder / "link");
  file.write("new");
  file.commit();
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_EQ(read_file(folder / "a"), "new");
}

TEST(AtomicFile, SaysWhatCannotBeWritten) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "missing/a";
  EXPECT_EQ(message_of<RunError>([&] { AtomicFile file(path); }),
            "cannot write " + path.string() + ": No such file or directory");
  EXPECT_EQ(message_of<RunError>([&] { AtomicFile file(folder.path()); }),
            "cannot write " + folder.path().string() + ": Is a directory");
}

TEST(AtomicFile, NoticesAFullDevice) {
  const auto write_to_full_device = [] {
    AtomicFile file("/dev/full");
    file.write("x");
    file.commit();
  };
  EXPECT_EQ(message_of<RunError>(write_to_full_device), "cannot write /dev/full: No space left on device");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/full")) << "the device is still there";
}

TEST(AtomicFile, LeavesNothingBehindWhenTheDiskIsFull) {
  const TemporaryFolder folder;
  write_file(folder / "a", "old");
  rlimit usual{};
  getrlimit(RLIMIT_FSIZE, &usual);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1000, usual.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string message = message_of<RunError>([&] {
    AtomicFile file(folder / "a");
    file.write(std::string(2000, 'x'));
  });
  setrlimit(RLIMIT_FSIZE, &usual);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(message, "cannot write " + (folder / "a").string() + ": File too large");
  EXPECT_EQ(read_file(folder / "a"), "old");
  EXPECT_THAT(folder.entries(), ElementsAre("a"));
}

TEST(RequireWritable, LeavesNothingBehind) {
  const TemporaryFolder folder;
  require_writable(folder / "a");
  EXPECT_TRUE(folder.entries().empty());
  EXPECT_THROW(require_writable(folder / "missing/a"), RunError);
}

TEST(ReplaceSymlink, ReplacesALinkButNoFolder) {
  const TemporaryFolder folder;
  replace_symlink("one", folder / "latest");
  replace_symlink("two", folder / "latest");
  EXPECT_EQ(std::filesystem::read_symlink(folder / "latest"), "two");
  EXPECT_THAT(folder.entries(), ElementsAre("latest"));

  std::filesystem::create_directory(folder / "folder");
  EXPECT_THROW(replace_symlink("one", folder / "folder"), RunError);
  EXPECT_THAT(folder.entries(), ElementsAre("folder", "latest"));
}

TEST(MakeDirectories, NamesWhatIsInTheWay) {
  const TemporaryFolder folder;
  make_directories(folder / "a/b");
  EXPECT_TRUE(std::filesystem::is_directory(folder / "a/b"));
  write_file(folder / "file", "");
  const std::filesystem::path path = folder / "file/b";
  EXPECT_EQ(message_of<RunError>([&] { make_directories(path); }),
            "cannot make the folder " + path.string() + ": Not a directory");
}

}  // namespace
}  // namespace actnn::app
