#include "src/app/optimizer.h"

#include <ATen/ops/empty_like.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <tuple>
#include <utility>

namespace actnn::app {
namespace {

constexpr double kMomentum = 0.9;
constexpr double kSgdWeightDecay = 5e-4;
constexpr double kBeta1 = 0.9;
constexpr double kBeta2 = 0.99;
constexpr double kAdamWeightDecay = 0.1;

constexpr const char* kMomentumBuffer = "momentum.";
constexpr const char* kFirstMoment = "first_moment.";
constexpr const char* kSecondMoment = "second_moment.";

std::unique_ptr<torch::optim::Optimizer> make(bool is_adam, std::vector<at::Tensor> parameters, double lr) {
  if (is_adam) {
    return std::make_unique<torch::optim::AdamW>(
        std::move(parameters),
        torch::optim::AdamWOptions(lr).betas(std::tuple(kBeta1, kBeta2)).weight_decay(kAdamWeightDecay));
  }
  return std::make_unique<torch::optim::SGD>(
      std::move(parameters),
      torch::optim::SGDOptions(lr).momentum(kMomentum).nesterov(true).weight_decay(kSgdWeightDecay));
}

}  // namespace

Optimizer::Optimizer(const Settings& settings, torch::nn::Module& model)
    : model_(model), is_adam_(settings.is_of_text()), optimizer_(make(is_adam_, model.parameters(), settings.lr)) {}

void Optimizer::step(double learning_rate) {
  for (torch::optim::OptimizerParamGroup& group : optimizer_->param_groups()) {
    group.options().set_lr(learning_rate);
  }
  optimizer_->step();
  optimizer_->zero_grad();
}

std::map<std::string, at::Tensor> Optimizer::state() const {
  std::map<std::string, at::Tensor> state;
  for (const auto& item : model_.named_parameters()) {
    const auto found = optimizer_->state().find(item.value().unsafeGetTensorImpl());
    if (found == optimizer_->state().end()) {
      continue;
    }
    if (is_adam_) {
      const auto& adam = static_cast<const torch::optim::AdamWParamState&>(*found->second);
      state.emplace(kFirstMoment + item.key(), adam.exp_avg());
      state.emplace(kSecondMoment + item.key(), adam.exp_avg_sq());
    } else {
      const auto& sgd = static_cast<const torch::optim::SGDParamState&>(*found->second);
      state.emplace(kMomentumBuffer + item.key(), sgd.momentum_buffer());
    }
  }
  return state;
}

void Optimizer::load_state(int64_t steps, const Find& find) {
  for (const auto& item : model_.named_parameters()) {
    const auto copy_of = [&](const char* name) {
      const at::Tensor copy = at::empty_like(item.value());
      return copy.copy_(find(name + item.key(), copy));
    };
    std::unique_ptr<torch::optim::OptimizerParamState>& state = optimizer_->state()[item.value().unsafeGetTensorImpl()];
    if (is_adam_) {
      auto adam = std::make_unique<torch::optim::AdamWParamState>();
      adam->step(steps);
      adam->exp_avg(copy_of(kFirstMoment));
      adam->exp_avg_sq(copy_of(kSecondMoment));
      state = std::move(adam);
    } else {
      auto sgd = std::make_unique<torch::optim::SGDParamState>();
      sgd->momentum_buffer(copy_of(kMomentumBuffer));
      state = std::move(sgd);
    }
  }
}

}  // namespace actnn::app
