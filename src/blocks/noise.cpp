#include "actnn/blocks/noise.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <utility>

#include "actnn/core/bit_allocation.h"
#include "actnn/core/bit_packing.h"
#include "actnn/policy/bit_allocation.h"
#include "src/blocks/measured_run.h"

namespace actnn::blocks {
namespace {

/// What backward has measured of a run, on the host.
struct Norms {
  double parameters = 0;
  std::vector<double> inputs;

  explicit Norms(const SquaredNorms& norms, size_t count) : inputs(count) {
    if (norms.defined()) {
      parameters = norms.parameters.item<double>();
      std::transform(norms.inputs.begin(), norms.inputs.end(), inputs.begin(),
                     [](const at::Tensor& norm) { return norm.item<double>(); });
    }
  }
};

/// From noise in the gradients of results to noise in those of all parameters in front of them.
class Followed {
 public:
  explicit Followed(const std::vector<std::shared_ptr<MeasuredRun>>& runs) {
    for (const auto& run : runs) {
      std::vector<double>& results = of_results_.emplace_back();
      for (const SquaredNorms& response : run->responses) {
        results.push_back(total(*run, Norms(response, run->sources.size())));
      }
    }
  }

  /// Of noise in a run's gradients.
  double total(const MeasuredRun& run, const Norms& norms) const {
    double total = norms.parameters;
    for (size_t input = 0; input < run.sources.size(); ++input) {
      for (const auto& [source, result] : run.sources[input]) {
        total += norms.inputs[input] * of_results_[source][result];
      }
    }
    return total;
  }

 private:
  std::vector<std::vector<double>> of_results_;
};

bool has_backward(const MeasuredRun& run) {
  return std::any_of(run.responses.begin(), run.responses.end(),
                     [](const SquaredNorms& response) { return response.defined(); });
}

double levels_variance(int64_t codes) { return rounding_variance(static_cast<int>(codes)); }

/// Of the gradient, with the bits of the values.
double variance_of(const std::vector<ValueNoise>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0, [](double sum, const ValueNoise& value) {
    return sum + value.sensitivity * levels_variance(value.bits - value.side);
  });
}

at::Tensor bytes_tensor(const std::vector<int64_t>& numbers) { return at::tensor(numbers, at::kLong).to(at::kByte); }

std::vector<int64_t> numbers_of(const at::Tensor& bytes) {
  const at::Tensor numbers = bytes.to(at::kLong);
  const auto* first = numbers.const_data_ptr<int64_t>();
  return {first, first + numbers.numel()};
}

/// A field, or what is computed from one, of each.
template <class Function>
auto each(const std::vector<ValueNoise>& values, Function function) {
  std::vector<decltype(function(values.front()))> all;
  std::transform(values.begin(), values.end(), std::back_inserter(all), function);
  return all;
}

/// The problem that the policy's allocation solves: bits of codes.
struct Problem {
  at::Tensor start;
  at::Tensor sensitivity;
  at::Tensor weight;
  at::Tensor fewest;

  explicit Problem(const std::vector<ValueNoise>& values)
      : start(bytes_tensor(each(values, [](const ValueNoise& value) { return value.most - value.side; }))),
        sensitivity(at::tensor(each(values, [](const ValueNoise& value) { return value.sensitivity; }), at::kDouble)),
        weight(at::tensor(each(values, [](const ValueNoise& value) { return value.elements; }), at::kLong)),
        fewest(bytes_tensor(each(values, [](const ValueNoise& value) { return value.fewest - value.side; }))) {}
};

}  // namespace

BlockNoise::~BlockNoise() { cancel(); }

bool BlockNoise::start(const std::vector<std::string>& prefixes) {
  auto runs = std::make_shared<MeasuredRuns>();
  runs->prefixes = prefixes;
  if (!begin_to_measure(runs)) {
    return false;
  }
  runs_ = std::move(runs);
  return true;
}

void BlockNoise::cancel() {
  if (runs_) {
    stop_measuring();
    runs_.reset();
  }
}

bool BlockNoise::finish(const std::vector<at::Tensor>& gradients) {
  TORCH_CHECK_VALUE(runs_, "actnn::BlockNoise: start must be called before finish");
  const at::NoGradGuard no_grad;
  const std::shared_ptr<MeasuredRuns> pass = runs_;
  cancel();
  const std::vector<std::shared_ptr<MeasuredRun>>& runs = pass->runs;
  if (std::none_of(runs.begin(), runs.end(), [](const auto& run) { return has_backward(*run); })) {
    return false;
  }
  const Followed followed(runs);
  std::vector<std::vector<double>> variances;
  variances.reserve(runs.size());
  for (const auto& run : runs) {
    variances.emplace_back(run->values.size());
  }
  for (const auto& run : runs) {
    for (const MeasuredRun::Copy& copy : run->copies) {
      const double found = followed.total(*run, Norms(copy.noise, run->sources.size()));
      variances[copy.saved_by.run][copy.saved_by.place] += found * run->variance_of_rounding;
    }
  }
  double squared_norm = 0;
  for (const at::Tensor& gradient : gradients) {
    if (gradient.defined()) {
      const auto norm = at::linalg_vector_norm(gradient, 2, std::nullopt, false, at::kFloat).item<double>();
      squared_norm += norm * norm;
    }
  }
  double total = squared_norm;
  for (const std::vector<double>& of_run : variances) {
    total = std::accumulate(of_run.begin(), of_run.end(), total);
  }
  if (!std::isfinite(total) || squared_norm == 0) {
    return false;
  }
  for (size_t number = 0; number < runs.size(); ++number) {
    const MeasuredRun& run = *runs[number];
    if (!has_backward(run)) {
      continue;
    }
    int64_t bits = run.saved_bytes * 8;
    for (size_t place = 0; place < run.values.size(); ++place) {
      const SavedValue& value = run.values[place];
      const int64_t code = value.bits - value.side;
      bits -= run.elements[place] * code;
      add({.block = run.block,
           .value = value.named,
           .bits = value.bits,
           .side = value.side,
           .fewest = value.fewest,
           .most = kMaxBits,
           .elements = run.elements[place],
           .sensitivity = variances[number][place] / levels_variance(code)});
    }
    other_bytes_ += bits / 8;
  }
  squared_norm_ += squared_norm;
  ++passes_;
  return true;
}

/// Copies that the same bits are for count together.
void BlockNoise::add(ValueNoise value) {
  const auto known = std::find_if(values_.begin(), values_.end(), [&](const ValueNoise& other) {
    return other.block == value.block && other.value == value.value;
  });
  if (known == values_.end()) {
    values_.push_back(std::move(value));
    return;
  }
  known->bits = value.bits;
  known->fewest = std::max(known->fewest, value.fewest);
  known->elements += value.elements;
  known->sensitivity += value.sensitivity;
}

std::vector<ValueNoise> BlockNoise::values() const {
  std::vector<ValueNoise> means = values_;
  for (ValueNoise& value : means) {
    value.elements /= passes_;
    value.sensitivity /= static_cast<double>(passes_);
  }
  return means;
}

/// The noisy gradients' is larger by their variance.
double BlockNoise::squared_norm() const {
  const double noisy = squared_norm_ / static_cast<double>(std::max<int64_t>(passes_, 1));
  constexpr double kLeastPart = 0.01;  // where the noise is many times the gradient, the difference is all noise
  return std::max(noisy - variance_of(values()), kLeastPart * noisy);
}

std::vector<ValueNoise> BlockNoise::values_with(const std::vector<int64_t>& bits) const {
  std::vector<ValueNoise> with = values();
  TORCH_CHECK_VALUE(bits.size() == with.size(), "actnn::BlockNoise: bits must be one for each of ", with.size(),
                    " values, got ", bits.size());
  for (size_t place = 0; place < with.size(); ++place) {
    with[place].bits = bits[place];
  }
  return with;
}

double BlockNoise::noise(const std::vector<int64_t>& bits) const {
  return variance_of(values_with(bits)) / squared_norm();
}

int64_t BlockNoise::kept_bytes(const std::vector<int64_t>& bits) const {
  int64_t codes = 0;
  for (const ValueNoise& value : values_with(bits)) {
    codes += value.elements * (value.bits - value.side);
  }
  return codes / 8 + other_bytes_ / std::max<int64_t>(passes_, 1);
}

std::vector<int64_t> BlockNoise::bits_for_noise(double noise) const {
  const std::vector<ValueNoise> means = values();
  if (means.empty()) {
    return {};
  }
  const Problem problem(means);
  return with_sides(
      numbers_of(allocate_bits_for_noise(problem.start, problem.sensitivity, problem.weight,
                                         at::scalar_tensor(noise * squared_norm(), at::kDouble), problem.fewest)));
}

std::vector<int64_t> BlockNoise::bits_for_bytes(int64_t bytes) const {
  const std::vector<ValueNoise> means = values();
  if (means.empty()) {
    return {};
  }
  const Problem problem(means);
  const int64_t codes = (bytes - other_bytes_ / std::max<int64_t>(passes_, 1)) * 8;
  return with_sides(
      numbers_of(allocate_bits(problem.start, problem.sensitivity, problem.weight, codes, problem.fewest)));
}

std::vector<int64_t> BlockNoise::with_sides(std::vector<int64_t> codes) const {
  for (size_t place = 0; place < codes.size(); ++place) {
    codes[place] += values_[place].side;
  }
  return codes;
}

}  // namespace actnn::blocks
