#include "src/app/idx.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/app/error.h"
#include "tests/cpp/app/temporary_folder.h"

namespace actnn::app {
namespace {

using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;

class Idx : public testing::Test {
 protected:
  std::string error_of(int dimensions) const {
    return message_of<RunError>([&] { read_idx(path, dimensions); });
  }

  TemporaryFolder folder;
  std::filesystem::path path = folder / "file";
  std::string good = idx_bytes(0x802, {2, 3}, "abcdef");
};

TEST_F(Idx, ReadsPlainAndCompressedFiles) {
  for (const bool compressed : {false, true}) {
    compressed ? write_gzip(path, good) : write_file(path, good);
    const IdxArray array = read_idx(path, 2);
    EXPECT_EQ(array.shape, (std::vector<int64_t>{2, 3}));
    EXPECT_EQ(std::string(array.data.begin(), array.data.end()), "abcdef");
  }
}

TEST_F(Idx, PrefersThePlainFile) {
  EXPECT_EQ(message_of<RunError>([&] { find_idx(folder.path(), "file"); }),
            "the data folder " + folder.path().string() + " has neither file nor file.gz");
  write_gzip(folder / "file.gz", good);
  EXPECT_EQ(find_idx(folder.path(), "file"), folder / "file.gz");
  write_file(path, good);
  EXPECT_EQ(find_idx(folder.path(), "file"), path);
}

TEST_F(Idx, RefusesWhatCannotBeRead) {
  EXPECT_EQ(error_of(2), "cannot read " + path.string() + ": No such file or directory");
  std::filesystem::create_directory(path);
  EXPECT_EQ(error_of(2), "cannot read " + path.string() + ": it is a folder");
}

TEST_F(Idx, RefusesAnotherMagicNumber) {
  write_file(path, good);
  EXPECT_EQ(error_of(3),
            path.string() +
                " is not an idx file of bytes with 3 dimensions: expected the magic number 0x00000803, found "
                "0x00000802");
  EXPECT_THAT(error_of(1), HasSubstr("with 1 dimension: "));
}

TEST_F(Idx, RefusesEveryTruncation) {
  for (std::size_t size = 0; size < good.size(); ++size) {
    write_file(path, good.substr(0, size));
    EXPECT_THAT(error_of(2), HasSubstr("is truncated")) << size;
  }
  EXPECT_THAT(error_of(2), EndsWith("its header announces 6 bytes of data, found 5"));
}

TEST_F(Idx, RefusesSurplusBytes) {
  write_file(path, good + "g");
  EXPECT_THAT(error_of(2), EndsWith("is damaged: its header announces 6 bytes of data, found more"));
}

TEST_F(Idx, RefusesImpossibleSizes) {
  for (const uint32_t size : {0U, 0xffffffffU}) {
    write_file(path, idx_bytes(0x802, {2, size}, "abcdef"));
    EXPECT_THAT(error_of(2), AllOf(HasSubstr("is damaged: dimension 1"), EndsWith(std::to_string(size))));
  }
}

TEST_F(Idx, RefusesEveryTruncationOfACompressedFile) {
  write_gzip(path, good);
  const std::string bytes = read_file(path);
  // Two bytes make a gzip file; less is read as a plain one.
  for (std::size_t size = 2; size < bytes.size(); ++size) {
    write_file(path, bytes.substr(0, size));
    EXPECT_THAT(error_of(2), HasSubstr("is truncated")) << size;
  }
}

TEST_F(Idx, RefusesADamagedCompressedFile) {
  write_gzip(path, good);
  std::string bytes = read_file(path);
  bytes[bytes.size() - 8] ^= 1;  // of the checksum
  write_file(path, bytes);
  EXPECT_THAT(error_of(2), HasSubstr("is damaged: "));
}

}  // namespace
}  // namespace actnn::app
