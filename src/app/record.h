#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "actnn/memory/observer.h"
#include "src/app/settings.h"

namespace actnn::app {

/// Steps at the start of a phase, or after resuming, that are left out of timings: the first ones choose kernels and
/// fill caches.
inline constexpr int64_t kUntimedSteps = 3;

/// What was measured in one phase so far. The bytes are those of torch's tensors on the device (see
/// AllocationObserver), without the data set; the peak on a GPU is that of torch's allocator, which also knows what
/// libraries keep from one phase to the next, such as cuBLAS's workspace.
struct PhaseRecord {
  std::vector<double> losses;         ///< one per step
  std::vector<double> step_ms;        ///< one per step: forward, backward, optimizer
  std::vector<double> test_accuracy;  ///< of images: one per epoch, from 0 to 1
  std::vector<double> test_loss;      ///< of a text: one per epoch, in nats per character
  int64_t activation_bytes = 0;       ///< the most that a step held after forward, beyond what it held before
  int64_t peak_bytes = 0;             ///< the most that was live in any step, weights and optimizer state included
  int64_t timed_labels = 0;           ///< images or characters trained on, without the first steps
  double timed_seconds = 0.0;         ///< needed for these, getting the batches included
  MemoryTimeline timeline;            ///< of one step
  nlohmann::json conversion;          ///< what became of the model's layers; null in the exact phase

  /// Of all steps but the first; of all where there are no others. 0 without steps.
  double median_step_ms() const;
  double labels_per_second(const Settings& settings) const;
  /// How many epochs have been tested.
  std::size_t evaluations() const { return std::max(test_accuracy.size(), test_loss.size()); }
};

/// For checkpoints: every field.
void to_json(nlohmann::json& json, const PhaseRecord& record);

/// Throws nlohmann::json::exception where a field is missing or of another type.
void from_json(const nlohmann::json& json, PhaseRecord& record);

/// For result.json: the figures of a finished phase, which has at least one step and one evaluation.
nlohmann::json result_of(const PhaseRecord& record, const Settings& settings);

}  // namespace actnn::app
