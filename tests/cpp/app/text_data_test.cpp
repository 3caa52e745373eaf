#include "src/app/text_data.h"

#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "src/app/error.h"
#include "tests/cpp/app/temporary_folder.h"

namespace actnn::app {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class TextFile : public testing::Test {
 protected:
  Text read(std::string_view bytes) const {
    write_file(path, bytes);
    return read_text(path);
  }
  std::string error_of(std::string_view bytes) const {
    return message_of<RunError>([&] { read(bytes); });
  }

  TemporaryFolder folder;
  std::filesystem::path path = folder / "a.txt";
};

TEST_F(TextFile, IsReadAsCharacters) {
  const Text text = read("b\u00e9a\U0001F600b\u2550");
  EXPECT_EQ(text.alphabet, U"ab\u00e9\u2550\U0001F600");
  EXPECT_THAT(text.characters, ElementsAre(1, 2, 0, 4, 1, 3));
  EXPECT_TRUE(read("").characters.empty());
}

TEST_F(TextFile, MayBeCompressed) {
  const std::string long_text(200'000, 'x');
  write_gzip(folder / "a.txt.gz", long_text + "y");
  EXPECT_EQ(read_text(folder / "a.txt.gz").characters.size(), 200'001U);
  const std::string bytes = read_file(folder / "a.txt.gz");
  EXPECT_EQ(error_of(std::string_view(bytes).substr(0, bytes.size() - 10)),
            path.string() + " is truncated: the compressed data ends early");
}

TEST_F(TextFile, MustBeInUtf8) {
  EXPECT_EQ(error_of("caf\xe9 au lait"),
            path.string() + " is not a text in UTF-8: the byte 0xe9 at position 3 begins no character");
  // A continuation alone, the slash in two and three bytes, half a surrogate pair, beyond the last character, an end in
  // the middle, a byte that UTF-8 does not have, a continuation that is none.
  for (const char* bytes :
       {"\x80", "\xc0\xaf", "\xe0\x80\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x95", "\xff", "\xe2(\x90"}) {
    EXPECT_THAT(error_of(bytes), HasSubstr("at position 0 begins no character"));
  }
}

TEST_F(TextFile, ThatIsMissingIsAnError) {
  EXPECT_THAT(message_of<RunError>([&] { read_text(folder / "b.txt"); }), HasSubstr("b.txt: No such file"));
}

class Sequences : public testing::Test {
 protected:
  Sequences() : text{.path = "a.txt", .alphabet = U"abc", .characters = std::vector<int32_t>(2000)} {
    for (size_t place = 0; place < text.characters.size(); ++place) {
      text.characters[place] = static_cast<int32_t>(place * place % 3);
    }
  }

  TextData part(TextData::Part part, int64_t limit = 0) const { return {text, part, limit, c10::kCPU}; }

  Text text;
};

TEST_F(Sequences, AreFollowedByTheNextCharacters) {
  const TextData train = part(TextData::Part::kTrain);
  const TextData test = part(TextData::Part::kTest);
  EXPECT_EQ(train.size(), 1799 / 128);
  EXPECT_EQ(test.size(), 1);
  EXPECT_EQ(train.classes(), 3);
  EXPECT_EQ(train.bytes(), (14 * 128 + 1) * 4);
  const Batch batch = train.batch(at::tensor({7, 3}, at::kLong));
  EXPECT_EQ(batch.inputs.sizes(), (c10::IntArrayRef{2, 128}));
  EXPECT_EQ(batch.labels.sizes(), (c10::IntArrayRef{2, 128}));
  for (const int64_t place : {0, 5, 127}) {
    EXPECT_EQ(batch.inputs[0][place].item<int64_t>(), text.characters[7 * 128 + place]);
    EXPECT_EQ(batch.labels[0][place].item<int64_t>(), text.characters[7 * 128 + place + 1]);
  }
  EXPECT_TRUE(train.range(3, 4).labels.equal(batch.labels.slice(0, 1)));
  EXPECT_EQ(test.range(0, 1).inputs[0][0].item<int64_t>(), text.characters[1800]) << "behind what is trained on";
}

TEST_F(Sequences, AreAsManyAsAreAskedFor) {
  const TextData all = part(TextData::Part::kTrain);
  const TextData some = part(TextData::Part::kTrain, 5);
  EXPECT_EQ(some.size(), 5);
  EXPECT_TRUE(some.range(0, 5).labels.equal(all.range(0, 5).labels));
  EXPECT_NE(some.checksum(), all.checksum());
  EXPECT_EQ(message_of<UsageError>([&] { part(TextData::Part::kTrain, 15); }),
            "--train-images 15 is more than the 14 sequences of 128 characters in a.txt");
  EXPECT_EQ(message_of<UsageError>([&] { part(TextData::Part::kTest, 2); }),
            "--test-images 2 is more than the 1 sequences of 128 characters in a.txt");
}

TEST_F(Sequences, HaveTheirAlphabetInTheChecksum) {
  const uint32_t checksum = part(TextData::Part::kTrain).checksum();
  text.alphabet = U"abd";
  EXPECT_NE(part(TextData::Part::kTrain).checksum(), checksum);
}

TEST_F(Sequences, NeedALongText) {
  text.characters.resize(1290);
  EXPECT_EQ(part(TextData::Part::kTest).size(), 1);
  text.characters.resize(1289);
  EXPECT_EQ(message_of<RunError>([&] { part(TextData::Part::kTrain); }),
            "a.txt is too short: it has 1289 characters, and at least 1290 are needed, a tenth of them for the test");
}

}  // namespace
}  // namespace actnn::app
