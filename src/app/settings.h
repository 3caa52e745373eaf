#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace actnn::app {

/// Saved activations as they are, or quantized.
enum class Phase { kExact, kCompressed };

const char* name_of(Phase phase);

/// What determines the losses of a run. Kept in checkpoints and results.
struct Settings {
  std::string model = "resnet20";
  int64_t bits = 4;
  std::string compress = "blocks";  ///< or "layers"
  int64_t batch_size = 128;
  int64_t epochs = 1;
  int64_t train_images = 0;  ///< 0: all; the number itself once the data is loaded
  int64_t test_images = 0;   ///< the same
  double lr = 0.1;
  int64_t seed = 1;
  std::string device = "cpu";
  std::string dtype = "float32";
  std::string only;  ///< "exact", "compressed", or empty: both

  /// The phases in the order in which they run.
  std::vector<Phase> phases() const;

  /// Whether the model learns a text, else images. Of a text, an "image" is a sequence of characters.
  bool is_of_text() const { return model == "gpt"; }
  /// Of a whole batch: one an image, one a character of a text.
  int64_t labels_per_step() const;
};

void to_json(nlohmann::json& json, const Settings& settings);

/// Throws nlohmann::json::exception where a field is missing or of another type.
void from_json(const nlohmann::json& json, Settings& settings);

}  // namespace actnn::app
