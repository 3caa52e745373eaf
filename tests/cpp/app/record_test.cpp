#include "src/app/record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/app/table.h"

namespace actnn::app {
namespace {

using testing::HasSubstr;
using testing::Not;

PhaseRecord example() {
  PhaseRecord record;
  record.losses = {2.25, 1.0 / 3};
  record.step_ms = {900, 800, 700, 20, 10, 30};
  record.test_accuracy = {0.5, 0.75};
  record.activation_bytes = 12;
  record.peak_bytes = 34;
  record.timed_labels = 300;
  record.timed_seconds = 1.5;
  record.timeline = {.samples = {{0, 10}, {5, 20}}, .marks = {{1, "forward"}}};
  record.conversion = {{"converted", 3}};
  return record;
}

Settings of_images() {
  Settings settings;
  settings.batch_size = 64;
  return settings;
}

Settings of_text() {
  Settings settings = of_images();
  settings.model = "gpt";
  return settings;
}

PhaseRecord example_of_text() {
  PhaseRecord record = example();
  record.test_accuracy.clear();
  record.test_loss = {2.5, 1.5};
  return record;
}

TEST(PhaseRecord, LeavesTheFirstStepsOutOfTimings) {
  PhaseRecord record = example();
  EXPECT_EQ(record.median_step_ms(), 20);
  EXPECT_EQ(record.labels_per_second(of_images()), 200);
  record.step_ms = {10, 20};
  record.timed_seconds = 0;
  EXPECT_EQ(record.median_step_ms(), 20);
  EXPECT_EQ(record.labels_per_second(of_images()), 3200);
}

TEST(PhaseRecord, SurvivesACheckpoint) {
  const PhaseRecord record = example();
  const nlohmann::json json = nlohmann::json::parse(nlohmann::json(record).dump());
  const PhaseRecord read = json.get<PhaseRecord>();
  EXPECT_EQ(read.losses, record.losses) << "to the last bit";
  EXPECT_EQ(nlohmann::json(read), nlohmann::json(record));
  EXPECT_THROW(nlohmann::json::object().get<PhaseRecord>(), nlohmann::json::exception);
}

TEST(PhaseRecord, BecomesAResult) {
  const nlohmann::json result = result_of(example(), of_images());
  EXPECT_EQ(result.at("test_accuracy"), 0.75);
  EXPECT_EQ(result.at("activation_bytes"), 12);
  EXPECT_EQ(result.at("peak_bytes"), 34);
  EXPECT_EQ(result.at("step_ms"), 20);
  EXPECT_EQ(result.at("images_per_second"), 200);
  EXPECT_EQ(result.at("loss").size(), 2);
  EXPECT_EQ(result.at("timeline").at("live_bytes"), (nlohmann::json{10, 20}));
  EXPECT_EQ(result.at("timeline").at("marks").at(0).at("name"), "forward");
  EXPECT_EQ(result.at("conversion").at("converted"), 3);
}

TEST(PhaseRecord, OfATextHasALoss) {
  PhaseRecord record = example_of_text();
  EXPECT_EQ(record.evaluations(), 2U);
  EXPECT_EQ(nlohmann::json::parse(nlohmann::json(record).dump()).get<PhaseRecord>().test_loss, record.test_loss);
  const nlohmann::json result = result_of(record, of_text());
  EXPECT_EQ(result.at("test_loss"), 1.5);
  EXPECT_EQ(result.at("test_loss_per_epoch").size(), 2);
  EXPECT_EQ(result.at("characters_per_second"), 200);
  EXPECT_FALSE(result.contains("test_accuracy"));
  record.step_ms = {20};
  record.timed_seconds = 0;
  EXPECT_EQ(record.labels_per_second(of_text()), 64 * 128 * 50);
}

TEST(Table, ShowsTheLossOfAText) {
  PhaseRecord compressed = example_of_text();
  compressed.test_loss = {1.5125};
  const std::string table = format_table(of_text(), example_of_text(), compressed);
  EXPECT_THAT(table, HasSubstr("test loss (nats per character)             1.5000       1.5125        +0.0125\n"));
  EXPECT_THAT(table, HasSubstr("characters per second"));
  EXPECT_THAT(table, Not(HasSubstr("images")));
}

TEST(Table, ComparesBothPhases) {
  PhaseRecord exact = example();
  exact.activation_bytes = int64_t{60} << 20;
  PhaseRecord compressed = example();
  compressed.activation_bytes = int64_t{10} << 20;
  compressed.test_accuracy = {0.7375};
  compressed.step_ms = {40};
  const std::string both = format_table({}, exact, compressed);
  EXPECT_THAT(both, HasSubstr("60.0 MiB     10.0 MiB     6.00x less\n"));
  EXPECT_THAT(both, HasSubstr("75.00 %      73.75 %   -1.25 points\n"));
  EXPECT_THAT(both, HasSubstr("20.0 ms      40.0 ms   2.00x slower\n"));
  EXPECT_THAT(format_table({}, exact, std::nullopt), HasSubstr("60.0 MiB"));
}

TEST(FormatBytes, ChoosesTheUnit) {
  EXPECT_EQ(format_bytes(0), "0.0 KiB");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes(int64_t{5} << 20), "5.0 MiB");
  EXPECT_EQ(format_bytes(int64_t{3} << 30), "3.00 GiB");
}

}  // namespace
}  // namespace actnn::app
