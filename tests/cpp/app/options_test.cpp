#include "src/app/options.h"

#include <gtest/gtest.h>

#include <vector>

#include "src/app/error.h"
#include "tests/cpp/app/temporary_folder.h"

namespace actnn::app {
namespace {

std::optional<Command> parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "actnn");
  return parse_command_line(static_cast<int>(arguments.size()), arguments.data(), "1.2.3");
}

std::string error_of(const std::vector<const char*>& arguments) {
  return message_of<UsageError>([&] { parse(arguments); });
}

TEST(Options, HaveTheDocumentedDefaults) {
  const std::optional<Command> command = parse({"train"});
  ASSERT_TRUE(command);
  EXPECT_EQ(command->kind, Command::Kind::kTrain);
  const Settings& settings = command->train.settings;
  EXPECT_EQ(settings.model, "resnet20");
  EXPECT_EQ(settings.bits, 4);
  EXPECT_EQ(settings.compress, "blocks");
  EXPECT_EQ(settings.batch_size, 128);
  EXPECT_EQ(settings.epochs, 1);
  EXPECT_EQ(settings.phases(), (std::vector{Phase::kExact, Phase::kCompressed}));
  EXPECT_EQ(command->train.output, "runs");
  EXPECT_TRUE(command->train.given.empty());
}

TEST(Options, AreRead) {
  const std::optional<Command> command =
      parse({"train", "--model", "mlp", "--bits=8", "--lr", "1e-3", "--only", "compressed", "--train-images", "7",
             "--seed", "0", "--threads", "3", "--save", "a b", "--stop-after", "5"});
  ASSERT_TRUE(command);
  const Settings& settings = command->train.settings;
  EXPECT_EQ(settings.model, "mlp");
  EXPECT_EQ(settings.bits, 8);
  EXPECT_EQ(settings.lr, 1e-3);
  EXPECT_EQ(settings.train_images, 7);
  EXPECT_EQ(settings.seed, 0);
  EXPECT_EQ(settings.phases(), std::vector{Phase::kCompressed});
  EXPECT_EQ(command->train.threads, 3);
  EXPECT_EQ(command->train.save, "a b");
  EXPECT_EQ(command->train.stop_after, 5);
  EXPECT_EQ(command->train.given, (std::set<std::string>{"model", "bits", "lr", "only", "train_images", "seed"}));
}

TEST(Options, OfATransformerHaveDefaultsOfTheirOwn) {
  Settings settings = parse({"train", "--model", "gpt"})->train.settings;
  EXPECT_EQ(settings.batch_size, 16);
  EXPECT_EQ(settings.lr, 3e-3);
  settings = parse({"train", "--model", "gpt", "--batch-size", "128", "--lr", "0.1"})->train.settings;
  EXPECT_EQ(settings.batch_size, 128);
  EXPECT_EQ(settings.lr, 0.1);
  EXPECT_EQ(error_of({"train", "--model", "gpt", "--compress", "layers"}),
            "--compress layers is not for gpt, whose layers run as one operation each");
  EXPECT_EQ(error_of({"train", "--model", "gpt", "--bits", "1"}),
            "--bits 1 is not for gpt, whose layers need 2 bits or more");
}

TEST(Options, RefuseNonsenseWithASentence) {
  EXPECT_EQ(error_of({"train", "--bits", "0"}), "--bits: expected a whole number from 1 to 8, got \"0\"");
  EXPECT_EQ(error_of({"train", "--bits", "9"}), "--bits: expected a whole number from 1 to 8, got \"9\"");
  EXPECT_EQ(error_of({"train", "--bits", "2x"}), "--bits: expected a whole number from 1 to 8, got \"2x\"");
  EXPECT_EQ(error_of({"train", "--batch-size", "0"}), "--batch-size: expected a whole number of at least 1, got \"0\"");
  EXPECT_EQ(error_of({"train", "--epochs", "99999999999999999999"}),
            "--epochs: expected a whole number of at least 1, got \"99999999999999999999\"");
  EXPECT_EQ(error_of({"train", "--model", "vgg"}), "--model: expected resnet20, resnet18, mlp or gpt, got \"vgg\"");
  for (const char* lr : {"-1", "0", "nan", "inf", "1e999", "x", ""}) {
    EXPECT_EQ(error_of({"train", "--lr", lr}),
              std::string("--lr: expected a positive finite number, got \"") + lr + "\"");
  }
  EXPECT_EQ(error_of({"train", "--name", "a/b"}),
            "--name: expected the name of a folder, without slashes, got \"a/b\"");
  EXPECT_EQ(error_of({"train", "--stop-after", "5"}),
            "--stop-after needs --save FILE, since what was trained would be lost");
  EXPECT_EQ(error_of({}), "expected a command: train or info");
  EXPECT_EQ(error_of({"dance"}), "The following argument was not expected: dance");
  EXPECT_FALSE(error_of({"train", "--bitz", "2"}).empty());
  EXPECT_FALSE(error_of({"train", "--bits"}).empty());
}

TEST(Options, OfAResumedRunAreTheCheckpoints) {
  Settings saved;
  saved.model = "mlp";
  saved.epochs = 3;
  TrainOptions options = parse({"train", "--resume", "x.ckpt", "--epochs", "3"})->train;
  EXPECT_EQ(resumed_settings(options, saved).model, "mlp");

  options = parse({"train", "--resume", "x.ckpt", "--batch-size", "64"})->train;
  EXPECT_EQ(message_of<UsageError>([&] { resumed_settings(options, saved); }),
            "resuming with --batch-size 64 contradicts the checkpoint x.ckpt, which was made with --batch-size 128");

  options = parse({"train", "--resume", "x.ckpt", "--only", "exact"})->train;
  EXPECT_EQ(message_of<UsageError>([&] { resumed_settings(options, saved); }),
            "resuming with --only exact contradicts the checkpoint x.ckpt, which was made without --only");
}

}  // namespace
}  // namespace actnn::app
