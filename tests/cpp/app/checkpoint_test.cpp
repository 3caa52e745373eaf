#include "src/app/checkpoint.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/app/error.h"
#include "tests/cpp/app/temporary_folder.h"

namespace actnn::app {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Checkpoint example() {
  return {.state = {{"phase", "exact"}, {"losses", {0.1, 2.5}}},
          .tensors = {{"model.weight", at::rand({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast)},
                      {"model.count", at::full({}, 7, at::kLong)},
                      {"model.empty", at::empty({0, 3})},
                      {"model.half", at::rand({3}).to(at::kBFloat16)},
                      {"random.cpu", at::arange(11, at::kByte)}}};
}

class CheckpointFile : public testing::Test {
 protected:
  std::string error() const {
    return message_of<RunError>([&] { read_checkpoint(path); });
  }

  TemporaryFolder folder;
  std::filesystem::path path = folder / "a.checkpoint";
};

TEST_F(CheckpointFile, GivesBackWhatWasWritten) {
  const Checkpoint written = example();
  write_checkpoint(path, written);
  const Checkpoint read = read_checkpoint(path);
  EXPECT_EQ(read.state, written.state);
  ASSERT_EQ(read.tensors.size(), written.tensors.size());
  for (const auto& [name, tensor] : written.tensors) {
    EXPECT_TRUE(read.tensors.at(name).equal(tensor)) << name;
    EXPECT_EQ(read.tensors.at(name).scalar_type(), tensor.scalar_type()) << name;
  }
  EXPECT_THAT(folder.entries(), ElementsAre("a.checkpoint"));
}

TEST_F(CheckpointFile, IsASafetensorsFile) {
  write_checkpoint(path, {.state = {{"a", 1}}, .tensors = {{"w", at::full({2}, 1, at::kInt)}}});
  const std::string bytes = read_file(path);
  const auto size = static_cast<unsigned char>(bytes[0]);
  EXPECT_EQ(bytes.substr(1, 7), std::string(7, '\0'));
  EXPECT_EQ(size % 8, 0);
  const nlohmann::json header = nlohmann::json::parse(bytes.substr(8, size));
  EXPECT_EQ(header.at("w"), (nlohmann::json{{"dtype", "I32"}, {"shape", {2}}, {"data_offsets", {0, 8}}}));
  EXPECT_EQ(header.at("__metadata__").at("actnn"), "{\"a\":1}");
  EXPECT_EQ(bytes.substr(8 + size), std::string("\1\0\0\0\1\0\0\0", 8));
}

TEST_F(CheckpointFile, RefusesWhatIsNone) {
  EXPECT_EQ(error(), "the checkpoint " + path.string() + " does not exist");
  for (const std::string& bytes : {std::string(), std::string("x"), std::string(100, 'x'),
                                   std::string("\2\0\0\0\0\0\0\0{}", 10), std::string("\4\0\0\0\0\0\0\0{\"a}", 12)}) {
    write_file(path, bytes);
    EXPECT_EQ(error(), path.string() + " is not a checkpoint of actnn train") << bytes;
  }
  path = folder.path();
  EXPECT_EQ(error(), "the checkpoint " + path.string() + " is not a regular file");
}

TEST_F(CheckpointFile, RefusesEveryTruncation) {
  write_checkpoint(path, example());
  const std::string bytes = read_file(path);
  for (std::size_t size = 9; size < bytes.size(); size += 13) {
    write_file(path, bytes.substr(0, size));
    EXPECT_THAT(error(), HasSubstr("is truncated: expected ")) << size;
  }
}

TEST_F(CheckpointFile, RefusesEveryDamagedByte) {
  const Checkpoint written = example();
  write_checkpoint(path, written);
  const std::string bytes = read_file(path);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    std::string damaged = bytes;
    damaged[i] = static_cast<char>(damaged[i] ^ 1);
    write_file(path, damaged);
    try {
      // What is not covered by the checksum are the names and types of tensors and the padding of the header.
      const Checkpoint read = read_checkpoint(path);
      EXPECT_EQ(read.state, written.state) << i;
      EXPECT_EQ(read.tensors.size(), written.tensors.size()) << i;
    } catch (const RunError& refused) {
      EXPECT_THAT(refused.what(), HasSubstr(path.string())) << i;
    }
  }
}

TEST_F(CheckpointFile, RefusesSurplusBytes) {
  write_checkpoint(path, example());
  write_file(path, read_file(path) + "x");
  EXPECT_EQ(error(), path.string() + " is damaged: its checksum does not match its contents");
}

TEST_F(CheckpointFile, KeepsTheOldOneWhenWritingFails) {
  EXPECT_EQ(message_of<RunError>([] { write_checkpoint("/dev/full", example()); }),
            "cannot write /dev/full: No space left on device");
}

}  // namespace
}  // namespace actnn::app
