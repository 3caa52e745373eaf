#include "src/app/trainer.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/randperm.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numbers>
#include <utility>

#include "src/app/compress.h"
#include "src/app/device.h"
#include "src/app/error.h"

namespace actnn::app {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kTestBatch = 500;  // images
constexpr int64_t kTestBatchOfText = 64;
constexpr double kWarmUpShare = 0.05;  // of all steps

constexpr const char* kModel = "model.";
constexpr const char* kCpuRandom = "random.cpu";
constexpr const char* kDeviceRandom = "random.device";

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// The order of the examples in an epoch depends on nothing but these two, so that both phases and resumed runs share
/// it.
at::Tensor example_order(int64_t examples, int64_t seed, int64_t epoch) {
  const auto generator =
      at::make_generator<at::CPUGeneratorImpl>(static_cast<uint64_t>(seed) * 1'000'003 + static_cast<uint64_t>(epoch));
  return at::randperm(examples, generator);
}

/// The tensor `name` out of a saved state, which must be like `model_tensor`.
const at::Tensor& find(const std::map<std::string, at::Tensor>& state, const std::string& name,
                       const at::Tensor& model_tensor, const std::string& source) {
  const auto found = state.find(name);
  if (found == state.end()) {
    throw RunError(fmt::format("the checkpoint {} does not fit the model: it has no tensor {}", source, name));
  }
  const at::Tensor& tensor = found->second;
  if (tensor.sizes() != model_tensor.sizes() || tensor.scalar_type() != model_tensor.scalar_type()) {
    throw RunError(
        fmt::format("the checkpoint {} does not fit the model: {} has the shape [{}] and type {}, expected [{}] and {}",
                    source, name, fmt::join(tensor.sizes(), ", "), c10::toString(tensor.scalar_type()),
                    fmt::join(model_tensor.sizes(), ", "), c10::toString(model_tensor.scalar_type())));
  }
  return tensor;
}

}  // namespace

Trainer::Trainer(const Settings& settings, Phase phase, const Dataset& train, const Dataset& test, c10::Device device,
                 PhaseRecord record)
    : settings_(settings),
      phase_(phase),
      train_(train),
      test_(test),
      device_(device),
      record_(std::move(record)),
      steps_per_epoch_((train.size() + settings.batch_size - 1) / settings.batch_size),
      total_steps_(steps_per_epoch_ * settings.epochs),
      timeline_step_(std::min(kUntimedSteps, total_steps_ - 1)) {
  at::manual_seed(static_cast<uint64_t>(settings.seed));
  model_ = make_model(settings.model, train.classes());
  model_->layers->to(device);
  if (phase == Phase::kCompressed) {
    record_.conversion = compress(*model_, settings);
  }
  warm_up();
  model_->layers->train();
  optimizer_.emplace(settings, *model_->layers);
  // Whatever building and converting drew, both phases begin to train from the same random state.
  at::manual_seed(static_cast<uint64_t>(settings.seed));
}

/// On a GPU, libraries allocate workspaces at their first use and keep them: not to be counted as a step's activations.
void Trainer::warm_up() {
  if (!device_.is_cpu()) {
    const at::NoGradGuard no_grad;
    model_->layers->eval();
    predict(train_.range(0, std::min(settings_.batch_size, train_.size())));
  }
}

void Trainer::reset_peak() {
  observer_.reset_peak();
  if (!device_.is_cpu()) {
    reset_allocator_peak(device_);
  }
}

int64_t Trainer::peak_bytes() const {
  return device_.is_cpu() ? observer_.peak_bytes(device_.type())
                          : allocator_peak_bytes(device_) - train_.bytes() - test_.bytes();
}

bool Trainer::evaluation_due() const {
  return static_cast<int64_t>(record_.evaluations()) < steps_done() / steps_per_epoch_;
}

double Trainer::learning_rate(int64_t step) const {
  const auto total = static_cast<double>(total_steps_);
  const double warm_up = std::ceil(kWarmUpShare * total);
  const auto position = static_cast<double>(step);
  if (position < warm_up) {
    return settings_.lr * (position + 1) / warm_up;
  }
  return settings_.lr * 0.5 * (1 + std::cos(std::numbers::pi * (position - warm_up) / (total - warm_up)));
}

Batch Trainer::next_batch() {
  const int64_t epoch = steps_done() / steps_per_epoch_;
  if (order_epoch_ != epoch) {
    order_ = example_order(train_.size(), settings_.seed, epoch).to(device_);
    order_epoch_ = epoch;
  }
  const int64_t begin = steps_done() % steps_per_epoch_ * settings_.batch_size;
  return train_.batch(order_.slice(0, begin, begin + settings_.batch_size));
}

Prediction Trainer::predict(const Batch& batch) {
  const AutocastGuard guard(device_.type(), settings_.dtype == "bfloat16" ? at::kBFloat16 : at::kFloat);
  return model_->predict(batch);
}

StepOutcome Trainer::step() {
  const c10::DeviceType type = device_.type();
  const Clock::time_point start = Clock::now();
  const Batch batch = next_batch();
  const int64_t step = steps_done();

  synchronize(device_);
  reset_peak();
  if (step == timeline_step_) {
    observer_.start_timeline(type);
  }
  const int64_t live_before = observer_.live_bytes(type);
  const Clock::time_point step_start = Clock::now();
  observer_.mark("forward");
  const Prediction prediction = predict(batch);
  const int64_t activation_bytes = observer_.live_bytes(type) - live_before;
  observer_.mark("backward");
  prediction.loss.backward();
  observer_.mark("step");
  optimizer_->step(learning_rate(step));
  synchronize(device_);
  record_.step_ms.push_back(1e3 * seconds_since(step_start));
  if (step == timeline_step_) {
    record_.timeline = observer_.stop_timeline();
  }
  record_.activation_bytes = std::max(record_.activation_bytes, activation_bytes);
  record_.peak_bytes = std::max(record_.peak_bytes, peak_bytes());

  const double loss_value = prediction.loss.item<float>();
  if (!std::isfinite(loss_value)) {
    throw RunError(fmt::format("the {} run diverged: the loss of step {} is {}; try a --lr below {}", name_of(phase_),
                               step + 1, loss_value, settings_.lr));
  }
  record_.losses.push_back(loss_value);
  StepOutcome outcome{.labels = batch.labels.numel()};
  if (prediction.correct.defined()) {
    outcome.correct = prediction.correct.item<int64_t>();
  }
  outcome.seconds = seconds_since(start);
  if (steps_here_++ >= kUntimedSteps) {
    record_.timed_labels += outcome.labels;
    record_.timed_seconds += outcome.seconds;
  }
  return outcome;
}

bool Trainer::evaluate(const std::function<bool()>& stop) {
  const at::NoGradGuard no_grad;
  model_->layers->eval();
  const int64_t batch_size = settings_.is_of_text() ? kTestBatchOfText : kTestBatch;
  int64_t correct = 0;
  int64_t labels = 0;
  double loss = 0;
  bool stopped = false;
  for (int64_t begin = 0; begin < test_.size() && !stopped; begin += batch_size) {
    const Batch batch = test_.range(begin, std::min(begin + batch_size, test_.size()));
    const Prediction prediction = predict(batch);
    labels += batch.labels.numel();
    loss += prediction.loss.item<double>() * static_cast<double>(batch.labels.numel());
    correct += prediction.correct.defined() ? prediction.correct.item<int64_t>() : 0;
    stopped = stop();
  }
  model_->layers->train();
  if (!stopped && settings_.is_of_text()) {
    record_.test_loss.push_back(loss / static_cast<double>(labels));
  } else if (!stopped) {
    record_.test_accuracy.push_back(static_cast<double>(correct) / static_cast<double>(labels));
  }
  return !stopped;
}

std::map<std::string, at::Tensor> Trainer::weights() const {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& item : model_->layers->named_parameters()) {
    tensors.emplace(item.key(), item.value());
  }
  for (const auto& item : model_->layers->named_buffers()) {
    tensors.emplace(item.key(), item.value());
  }
  return tensors;
}

at::Generator& Trainer::generator(c10::Device device) const {
  return const_cast<at::Generator&>(at::globalContext().defaultGenerator(device));
}

std::map<std::string, at::Tensor> Trainer::state() const {
  std::map<std::string, at::Tensor> state;
  for (const auto& [name, tensor] : weights()) {
    state.emplace(kModel + name, tensor);
  }
  state.merge(optimizer_->state());
  state.emplace(kCpuRandom, generator(c10::kCPU).get_state());
  if (!device_.is_cpu()) {
    state.emplace(kDeviceRandom, generator(device_).get_state());
  }
  return state;
}

void Trainer::load_state(const std::map<std::string, at::Tensor>& state, const std::string& source) {
  const at::NoGradGuard no_grad;
  const std::map<std::string, at::Tensor> current = this->state();
  for (const auto& [name, tensor] : weights()) {
    tensor.copy_(find(state, kModel + name, tensor, source));
  }
  optimizer_->load_state(steps_done(), [&](const std::string& name, const at::Tensor& like) -> const at::Tensor& {
    return find(state, name, like, source);
  });
  generator(c10::kCPU).set_state(find(state, kCpuRandom, current.at(kCpuRandom), source));
  if (!device_.is_cpu()) {
    generator(device_).set_state(find(state, kDeviceRandom, current.at(kDeviceRandom), source));
  }
}

}  // namespace actnn::app
