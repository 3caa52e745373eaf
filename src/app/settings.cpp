#include "src/app/settings.h"

#include <nlohmann/json.hpp>

#include "src/app/text_data.h"

namespace actnn::app {

const char* name_of(Phase phase) { return phase == Phase::kExact ? "exact" : "compressed"; }

std::vector<Phase> Settings::phases() const {
  if (only == name_of(Phase::kExact)) {
    return {Phase::kExact};
  }
  if (only == name_of(Phase::kCompressed)) {
    return {Phase::kCompressed};
  }
  return {Phase::kExact, Phase::kCompressed};
}

int64_t Settings::labels_per_step() const { return is_of_text() ? batch_size * TextData::kContext : batch_size; }

void to_json(nlohmann::json& json, const Settings& settings) {
  json = {{"model", settings.model},
          {"bits", settings.bits},
          {"compress", settings.compress},
          {"batch_size", settings.batch_size},
          {"epochs", settings.epochs},
          {"train_images", settings.train_images},
          {"test_images", settings.test_images},
          {"lr", settings.lr},
          {"seed", settings.seed},
          {"device", settings.device},
          {"dtype", settings.dtype},
          {"only", settings.only}};
}

void from_json(const nlohmann::json& json, Settings& settings) {
  json.at("model").get_to(settings.model);
  json.at("bits").get_to(settings.bits);
  json.at("compress").get_to(settings.compress);
  json.at("batch_size").get_to(settings.batch_size);
  json.at("epochs").get_to(settings.epochs);
  json.at("train_images").get_to(settings.train_images);
  json.at("test_images").get_to(settings.test_images);
  json.at("lr").get_to(settings.lr);
  json.at("seed").get_to(settings.seed);
  json.at("device").get_to(settings.device);
  json.at("dtype").get_to(settings.dtype);
  json.at("only").get_to(settings.only);
}

}  // namespace actnn::app
