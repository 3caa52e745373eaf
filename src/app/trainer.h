#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "actnn/memory/observer.h"
#include "src/app/dataset.h"
#include "src/app/models.h"
#include "src/app/optimizer.h"
#include "src/app/record.h"
#include "src/app/settings.h"

namespace actnn::app {

/// What one step did, beyond what its record says.
struct StepOutcome {
  int64_t labels = 0;                ///< images, or characters of a text
  std::optional<int64_t> correct{};  ///< of them; none: nobody has counted
  double seconds = 0.0;              ///< getting the batch included
};

/// Trains one model: one phase of a run. Everything is a function of the settings and the phase: weights, order of
/// images and noise come from the seed; on one CPU thread the losses are the same, bit for bit, also when resumed from
/// a saved state.
class Trainer {
 public:
  /// `record`: what was measured before, for a resumed phase. The data must outlive the trainer.
  Trainer(const Settings& settings, Phase phase, const Dataset& train, const Dataset& test, c10::Device device,
          PhaseRecord record = {});

  const PhaseRecord& record() const { return record_; }
  int64_t steps_per_epoch() const { return steps_per_epoch_; }
  int64_t steps_done() const { return static_cast<int64_t>(record_.losses.size()); }
  bool finished() const { return steps_done() == total_steps_ && !evaluation_due(); }

  /// An epoch has ended and its test result is not known yet.
  bool evaluation_due() const;

  /// Trains on the next batch. RunError where the loss is no longer a number.
  StepOutcome step();

  /// Measures the test accuracy, of a text the test loss, and adds it to the record; false where `stop`, asked between
  /// batches, said so.
  bool evaluate(const std::function<bool()>& stop);

  /// Weights, optimizer state and random states.
  std::map<std::string, at::Tensor> state() const;

  /// Takes over what `state` gave; `source` names the file in the RunError for tensors that do not fit the model.
  void load_state(const std::map<std::string, at::Tensor>& state, const std::string& source);

 private:
  Prediction predict(const Batch& batch);
  Batch next_batch();
  double learning_rate(int64_t step) const;
  void warm_up();
  void reset_peak();
  int64_t peak_bytes() const;
  at::Generator& generator(c10::Device device) const;
  std::map<std::string, at::Tensor> weights() const;

  // First, so that it sees the model come and go.
  AllocationObserver observer_;

  const Settings& settings_;
  Phase phase_;
  const Dataset& train_;
  const Dataset& test_;
  c10::Device device_;
  PhaseRecord record_;
  int64_t steps_per_epoch_;
  int64_t total_steps_;
  int64_t timeline_step_;
  int64_t steps_here_ = 0;  // since this object was made
  at::Tensor order_;        // of the examples in the current epoch
  int64_t order_epoch_ = -1;
  std::unique_ptr<Model> model_;
  std::optional<Optimizer> optimizer_;
};

}  // namespace actnn::app
