#include "src/app/train.h"

#include <ATen/Parallel.h>
#include <fmt/core.h>

#include <cstdio>
#include <map>
#include <optional>

#include "actnn/core/layout.h"
#include "src/app/atomic_file.h"
#include "src/app/checkpoint.h"
#include "src/app/data.h"
#include "src/app/device.h"
#include "src/app/error.h"
#include "src/app/interrupt.h"
#include "src/app/progress.h"
#include "src/app/result.h"
#include "src/app/table.h"
#include "src/app/trainer.h"

namespace actnn::app {
namespace {

constexpr int kCheckpointFormat = 1;
constexpr const char* kPackedFormat = "packed_format";

/// All phases of one run.
class Run {
 public:
  explicit Run(const TrainOptions& options)
      : options_(options),
        checkpoint_(options.resume.empty() ? std::nullopt : std::optional(read_checkpoint(options.resume))),
        settings_(choose_settings()),
        device_(open_device(settings_.device)),
        data_(open_data(settings_, options.data, device_)),
        progress_(stdout) {
    settings_.train_images = data_.train->size();
    settings_.test_images = data_.test->size();
    resume();
    if (!options_.save.empty()) {
      require_writable(options_.save);
    }
    folder_.emplace(options);
    if (options_.threads > 0) {
      at::set_num_threads(static_cast<int>(options_.threads));
    }
  }

  int run() {
    progress_.line(fmt::format("{} on {}: {} {}, {} steps of {}, {}, {}, {} thread{}", settings_.model, data_.title,
                               data_.train->size(), examples(), steps_per_phase(), settings_.batch_size,
                               settings_.device, settings_.dtype, at::get_num_threads(),
                               at::get_num_threads() == 1 ? "" : "s"));
    for (const Phase phase : settings_.phases()) {
      if (!records_.contains(phase) || resumed_phase_ == phase) {
        if (!run_phase(phase)) {
          return stop();
        }
      }
    }
    folder_->write(settings_, records_);
    const auto record_of = [&](Phase phase) {
      const auto found = records_.find(phase);
      return found == records_.end() ? std::nullopt : std::optional(found->second);
    };
    progress_.line(
        fmt::format("\n{}", format_table(settings_, record_of(Phase::kExact), record_of(Phase::kCompressed))));
    progress_.line(fmt::format("written to {}", folder_->file().string()));
    return kExitSuccess;
  }

 private:
  Settings choose_settings() const {
    if (!checkpoint_) {
      return options_.settings;
    }
    try {
      return resumed_settings(options_, checkpoint_->state.at("settings").get<Settings>());
    } catch (const nlohmann::json::exception&) {
      throw foreign_checkpoint();
    }
  }

  RunError foreign_checkpoint() const {
    return RunError(
        fmt::format("the checkpoint {} was written by another version of actnn train", options_.resume.string()));
  }

  /// Copies in another format have other noise: the run would not go on as it began.
  void check_packed_format(int version) const {
    if (version != kFormatVersion) {
      throw RunError(
          fmt::format("the checkpoint {} was written with version {} of the packed format, this program has version {}",
                      options_.resume.string(), version, kFormatVersion));
    }
  }

  /// Takes over the measurements and the position of the checkpoint; its tensors follow when the phase's model exists.
  void resume() {
    if (!checkpoint_) {
      return;
    }
    try {
      const nlohmann::json& state = checkpoint_->state;
      if (state.at("format") != kCheckpointFormat) {
        throw foreign_checkpoint();
      }
      check_packed_format(state.value(kPackedFormat, 1));
      if (state.at("data") != data_checksums()) {
        throw RunError(fmt::format("the {} in {} are not those that the checkpoint {} was trained on", examples(),
                                   data_.path.string(), options_.resume.string()));
      }
      for (const Phase phase : settings_.phases()) {
        if (state.at("records").contains(name_of(phase))) {
          records_[phase] = state.at("records").at(name_of(phase)).get<PhaseRecord>();
        }
        if (state.at("phase") == name_of(phase)) {
          resumed_phase_ = phase;
        }
      }
      if (!resumed_phase_ || !records_.contains(*resumed_phase_)) {
        throw foreign_checkpoint();
      }
    } catch (const nlohmann::json::exception&) {
      throw foreign_checkpoint();
    }
  }

  nlohmann::json data_checksums() const { return {data_.train->checksum(), data_.test->checksum()}; }

  const char* examples() const { return settings_.is_of_text() ? "sequences" : "images"; }

  int64_t steps_per_phase() const {
    return (data_.train->size() + settings_.batch_size - 1) / settings_.batch_size * settings_.epochs;
  }

  int64_t total_steps() const { return steps_per_phase() * static_cast<int64_t>(settings_.phases().size()); }

  bool enough() const { return options_.stop_after > 0 && steps_here_ >= options_.stop_after; }

  /// False where the run is to stop.
  bool run_phase(Phase phase) {
    const bool resumed = resumed_phase_ == phase;
    Trainer trainer(settings_, phase, *data_.train, *data_.test, device_, resumed ? records_.at(phase) : PhaseRecord());
    if (resumed) {
      trainer.load_state(checkpoint_->tensors, options_.resume.string());
    }
    const bool last_phase = phase == settings_.phases().back();
    const int64_t steps_before = last_phase ? total_steps() - steps_per_phase() : 0;
    steps_done_ = steps_before + trainer.steps_done();
    while (!trainer.finished()) {
      if (trainer.evaluation_due()) {
        if (!trainer.evaluate([&] { return interrupt_.requested(); })) {
          save(phase, trainer);
          return false;
        }
        save(phase, trainer);
        progress_.line(fmt::format("{:<10}  epoch {}/{}  {}", name_of(phase), trainer.record().evaluations(),
                                   settings_.epochs, test_result(trainer.record())));
      } else {
        const StepOutcome outcome = trainer.step();
        ++steps_here_;
        steps_done_ = steps_before + trainer.steps_done();
        show(phase, trainer, outcome);
      }
      if ((enough() || interrupt_.requested()) && !trainer.evaluation_due()) {
        save(phase, trainer);
        return last_phase && trainer.finished();
      }
    }
    records_[phase] = trainer.record();
    return true;
  }

  static std::string test_result(const PhaseRecord& record) {
    return record.test_loss.empty() ? fmt::format("test accuracy {:.2f} %", 1e2 * record.test_accuracy.back())
                                    : fmt::format("test loss {:.4f}", record.test_loss.back());
  }

  void show(Phase phase, const Trainer& trainer, const StepOutcome& outcome) {
    const int64_t last = trainer.steps_done() - 1;
    progress_.step({.phase = name_of(phase),
                    .epoch = last / trainer.steps_per_epoch() + 1,
                    .epochs = settings_.epochs,
                    .step = last % trainer.steps_per_epoch() + 1,
                    .steps = trainer.steps_per_epoch(),
                    .loss = trainer.record().losses.back(),
                    .unit = settings_.is_of_text() ? "characters" : "images",
                    .units = outcome.labels,
                    .correct = outcome.correct,
                    .seconds = outcome.seconds,
                    .activation_bytes = trainer.record().activation_bytes,
                    .steps_left = total_steps() - steps_done_});
  }

  void save(Phase phase, const Trainer& trainer) {
    records_[phase] = trainer.record();
    if (options_.save.empty()) {
      return;
    }
    nlohmann::json records;
    for (const auto& [recorded_phase, record] : records_) {
      records[name_of(recorded_phase)] = record;
    }
    write_checkpoint(options_.save, {.state = {{"format", kCheckpointFormat},
                                               {kPackedFormat, kFormatVersion},
                                               {"settings", settings_},
                                               {"phase", name_of(phase)},
                                               {"data", data_checksums()},
                                               {"records", records}},
                                     .tensors = trainer.state()});
  }

  int stop() {
    const std::string rest = options_.save.empty()
                                 ? "nothing was saved, since --save was not given"
                                 : fmt::format("go on with: actnn train --resume {}", options_.save.string());
    progress_.line(fmt::format("stopped after {} of {} steps; {}", steps_done_, total_steps(), rest));
    return interrupt_.requested() ? kExitInterrupted : kExitSuccess;
  }

  const TrainOptions& options_;
  std::optional<Checkpoint> checkpoint_;
  Settings settings_;
  c10::Device device_;
  Data data_;
  std::optional<ResultFolder> folder_;
  Progress progress_;
  InterruptGuard interrupt_;
  std::map<Phase, PhaseRecord> records_;
  std::optional<Phase> resumed_phase_;
  int64_t steps_done_ = 0;  // of all phases
  int64_t steps_here_ = 0;  // in this call
};

}  // namespace

int train(const TrainOptions& options) { return Run(options).run(); }

}  // namespace actnn::app
