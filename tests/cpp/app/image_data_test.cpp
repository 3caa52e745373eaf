#include "src/app/image_data.h"

#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/app/error.h"
#include "tests/cpp/app/temporary_folder.h"

namespace actnn::app {
namespace {

using testing::EndsWith;

class Images : public testing::Test {
 protected:
  Images() { write_data(folder.path(), 20); }

  template <typename Error>
  std::string error(int64_t limit = 0) const {
    return message_of<Error>([&] { ImageData(folder.path(), "train", limit, c10::kCPU); });
  }

  TemporaryFolder folder;
  std::filesystem::path images_path = folder / "train-images-idx3-ubyte";
  std::filesystem::path labels_path = folder / "train-labels-idx1-ubyte";
};

TEST_F(Images, GivesNormalizedBatches) {
  const ImageData data(folder.path(), "train", 0, c10::kCPU);
  EXPECT_EQ(data.size(), 20);
  const Batch batch = data.batch(at::tensor({7, 3}, at::kLong));
  EXPECT_EQ(batch.inputs.sizes(), (c10::IntArrayRef{2, 1, 28, 28}));
  const std::string pixels = read_file(images_path);
  const std::string labels = read_file(labels_path);
  const auto pixel = static_cast<uint8_t>(pixels[16 + 3 * 784 + 5 * 28 + 6]);
  EXPECT_FLOAT_EQ(batch.inputs[1][0][5][6].item<float>(), (static_cast<float>(pixel) - 72.94F) / 90.02F);
  EXPECT_EQ(batch.labels[0].item<int64_t>(), labels[8 + 7]);

  const Batch range = data.range(3, 4);
  EXPECT_TRUE(range.inputs.equal(batch.inputs.slice(0, 1)));
}

TEST_F(Images, UsesTheFirstImages) {
  const ImageData all(folder.path(), "train", 20, c10::kCPU);
  const ImageData some(folder.path(), "train", 5, c10::kCPU);
  EXPECT_EQ(some.size(), 5);
  EXPECT_TRUE(some.range(0, 5).inputs.equal(all.range(0, 5).inputs));
  EXPECT_NE(some.checksum(), all.checksum());
  EXPECT_EQ(error<UsageError>(21), "--train-images 21 is more than the 20 images in " + images_path.string());
}

TEST_F(Images, RefusesOtherSizesCountsAndLabels) {
  write_file(images_path, idx_bytes(0x803, {20, 14, 56}, std::string(15680, 'x')));
  EXPECT_THAT(error<RunError>(), EndsWith("must hold images of 28 x 28 pixels, found 14 x 56"));
  write_file(images_path, idx_bytes(0x803, {19, 28, 28}, std::string(14896, 'x')));
  EXPECT_EQ(error<RunError>(), images_path.string() + " has 19 images, but " + labels_path.string() + " has 20 labels");
  std::string labels(19, '\0');
  labels.back() = '\12';
  write_file(labels_path, idx_bytes(0x801, {19}, labels));
  EXPECT_EQ(error<RunError>(), labels_path.string() + " must hold labels from 0 to 9, found 10 at position 18");
}

}  // namespace
}  // namespace actnn::app
