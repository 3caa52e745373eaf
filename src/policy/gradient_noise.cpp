#include "actnn/policy/gradient_noise.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/ScopeExit.h>

#include <algorithm>

namespace actnn {
namespace {

double squared_norm_of(const at::Tensor& tensor) { return tensor.to(at::kDouble).square().sum().item<double>(); }

}  // namespace

void GradientNoise::add(const std::vector<at::Tensor>& gradients) {
  const at::NoGradGuard no_grad;
  TORCH_CHECK_VALUE(draws_ == 0 || gradients.size() == sum_.size(),
                    "actnn::GradientNoise: gradients must be as many as in the draw before, ", sum_.size(), ", got ",
                    gradients.size());
  sum_.resize(gradients.size());
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (gradients[i].defined()) {
      const at::Tensor gradient = gradients[i].to(at::kFloat);
      sum_of_squared_norms_ += squared_norm_of(gradient);
      sum_[i] = sum_[i].defined() ? sum_[i] + gradient : gradient.clone();
    }
  }
  ++draws_;
}

double GradientNoise::squared_norm_of_sum() const {
  TORCH_CHECK_VALUE(draws_ >= 2, "actnn::GradientNoise: draws must be two or more, got ", draws_);
  double total = 0;
  for (const at::Tensor& sum : sum_) {
    total += sum.defined() ? squared_norm_of(sum) : 0.0;
  }
  return total;
}

double GradientNoise::variance() const {
  const auto draws = static_cast<double>(draws_);
  return std::max(0.0, (sum_of_squared_norms_ - squared_norm_of_sum() / draws) / (draws - 1));
}

double GradientNoise::squared_norm() const {
  const auto draws = static_cast<double>(draws_);
  return squared_norm_of_sum() / (draws * draws) - variance() / draws;
}

double GradientNoise::noise() const { return variance() / squared_norm(); }

GradientNoise measure_gradient_noise(const std::vector<at::Tensor>& parameters, const std::function<void()>& backward,
                                     int64_t draws) {
  TORCH_CHECK_VALUE(draws >= 2, "actnn::measure_gradient_noise: draws must be two or more, got ", draws);
  std::vector<at::Tensor> before;
  before.reserve(parameters.size());
  for (const at::Tensor& parameter : parameters) {
    before.push_back(parameter.grad());
  }
  const auto restore = c10::make_scope_exit([&] {
    for (size_t i = 0; i < parameters.size(); ++i) {
      parameters[i].mutable_grad() = before[i];
    }
  });
  GradientNoise noise;
  for (int64_t draw = 0; draw < draws; ++draw) {
    std::vector<at::Tensor> gradients;
    gradients.reserve(parameters.size());
    for (const at::Tensor& parameter : parameters) {
      parameter.mutable_grad() = at::Tensor();
    }
    backward();
    for (const at::Tensor& parameter : parameters) {
      gradients.push_back(parameter.grad());
    }
    TORCH_CHECK_VALUE(std::any_of(gradients.begin(), gradients.end(), [](const at::Tensor& g) { return g.defined(); }),
                      "actnn::measure_gradient_noise: backward must give gradients to parameters, but none has one");
    noise.add(gradients);
  }
  return noise;
}

}  // namespace actnn
