#include "src/app/record.h"

#include <algorithm>
#include <cstddef>
#include <string>

namespace actnn::app {
namespace {

nlohmann::json timeline_to_json(const MemoryTimeline& timeline) {
  nlohmann::json microseconds = nlohmann::json::array();
  nlohmann::json live_bytes = nlohmann::json::array();
  for (const MemorySample& sample : timeline.samples) {
    microseconds.push_back(sample.microseconds);
    live_bytes.push_back(sample.live_bytes);
  }
  nlohmann::json marks = nlohmann::json::array();
  for (const MemoryMark& mark : timeline.marks) {
    marks.push_back({{"name", mark.name}, {"microseconds", mark.microseconds}});
  }
  return {{"microseconds", microseconds}, {"live_bytes", live_bytes}, {"marks", marks}};
}

MemoryTimeline timeline_from_json(const nlohmann::json& json) {
  MemoryTimeline timeline;
  const nlohmann::json& microseconds = json.at("microseconds");
  const nlohmann::json& live_bytes = json.at("live_bytes");
  for (std::size_t i = 0; i < microseconds.size(); ++i) {
    timeline.samples.push_back({microseconds.at(i).get<int64_t>(), live_bytes.at(i).get<int64_t>()});
  }
  for (const nlohmann::json& mark : json.at("marks")) {
    timeline.marks.push_back({mark.at("microseconds").get<int64_t>(), mark.at("name").get<std::string>()});
  }
  return timeline;
}

}  // namespace

double PhaseRecord::median_step_ms() const {
  if (step_ms.empty()) {
    return 0.0;
  }
  const bool enough = step_ms.size() > static_cast<std::size_t>(kUntimedSteps);
  std::vector<double> sorted(step_ms.begin() + (enough ? kUntimedSteps : 0), step_ms.end());
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  return *middle;
}

double PhaseRecord::labels_per_second(const Settings& settings) const {
  if (timed_seconds > 0.0) {
    return static_cast<double>(timed_labels) / timed_seconds;
  }
  const double step = median_step_ms();
  return step > 0.0 ? 1e3 * static_cast<double>(settings.labels_per_step()) / step : 0.0;
}

void to_json(nlohmann::json& json, const PhaseRecord& record) {
  json = {{"losses", record.losses},
          {"step_ms", record.step_ms},
          {"test_accuracy", record.test_accuracy},
          {"test_loss", record.test_loss},
          {"activation_bytes", record.activation_bytes},
          {"peak_bytes", record.peak_bytes},
          {"timed_labels", record.timed_labels},
          {"timed_seconds", record.timed_seconds},
          {"timeline", timeline_to_json(record.timeline)},
          {"conversion", record.conversion}};
}

void from_json(const nlohmann::json& json, PhaseRecord& record) {
  json.at("losses").get_to(record.losses);
  json.at("step_ms").get_to(record.step_ms);
  json.at("test_accuracy").get_to(record.test_accuracy);
  json.at("test_loss").get_to(record.test_loss);
  json.at("activation_bytes").get_to(record.activation_bytes);
  json.at("peak_bytes").get_to(record.peak_bytes);
  json.at("timed_labels").get_to(record.timed_labels);
  json.at("timed_seconds").get_to(record.timed_seconds);
  record.timeline = timeline_from_json(json.at("timeline"));
  record.conversion = json.at("conversion");
}

nlohmann::json result_of(const PhaseRecord& record, const Settings& settings) {
  const std::string measure = settings.is_of_text() ? "test_loss" : "test_accuracy";
  const std::vector<double>& measured = settings.is_of_text() ? record.test_loss : record.test_accuracy;
  nlohmann::json result = {
      {measure, measured.back()},
      {measure + "_per_epoch", measured},
      {"activation_bytes", record.activation_bytes},
      {"peak_bytes", record.peak_bytes},
      {"step_ms", record.median_step_ms()},
      {settings.is_of_text() ? "characters_per_second" : "images_per_second", record.labels_per_second(settings)},
      {"loss", record.losses},
      {"timeline", timeline_to_json(record.timeline)}};
  if (!record.conversion.is_null()) {
    result["conversion"] = record.conversion;
  }
  return result;
}

}  // namespace actnn::app
