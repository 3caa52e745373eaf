#include "src/blocks/measured_run.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>

#include "actnn/core/layout.h"
#include "src/blocks/value_sizes.h"

namespace actnn::blocks {
namespace {

std::mutex current_mutex;
std::shared_ptr<MeasuredRuns> current;
std::atomic<bool> measures = false;  // so that other steps take no lock

at::Tensor squared_norm(const at::Tensor& tensor) {
  return at::linalg_vector_norm(tensor, 2, std::nullopt, false, at::kFloat).to(at::kDouble).square();
}

/// `inputs`: how many of the gradients are those of inputs.
SquaredNorms squared_norms(const std::vector<at::Tensor>& gradients, size_t inputs, const at::Tensor& like) {
  SquaredNorms norms{.parameters = at::zeros({}, like.options().dtype(at::kDouble)), .inputs = {}};
  for (size_t number = 0; number < gradients.size(); ++number) {
    at::Tensor norm = at::zeros({}, norms.parameters.options());
    if (gradients[number].defined()) {
      norm = squared_norm(gradients[number]);
    }
    if (number < inputs) {
      norms.inputs.push_back(std::move(norm));
    } else {
      norms.parameters += norm;
    }
  }
  return norms;
}

/// The same codes, as if they had been rounded with other noise, which is subtracted: bytes 0 to 7 of the header are
/// its seed, and the last bit says whether noise is (core/layout.h).
at::Tensor with_other_noise(const at::Tensor& packed, int64_t seed) {
  static_assert(PackedHeader::kUndithered == uint64_t{1} << 63);
  constexpr int64_t kDithered = 0x7F;
  at::Tensor other = packed.clone();
  other.narrow(0, 0, 8).bitwise_xor_(seed);
  other.narrow(0, kHeaderBytes - 1, 1).bitwise_and_(kDithered);
  return other;
}

/// What is XORed into the seed: each gives a draw.
constexpr std::array<int64_t, 4> kSeeds{0xA5, 0x5A, 0xC3, 0x3C};

/// Step^2 / 12 is the variance of dithered copies, and so of those that are drawn here, and on average the squared
/// error of copies rounded to nearest; that of stochastic ones is step^2 / 6.
double variance_of_rounding(Rounding rounding) { return rounding == Rounding::kStochastic ? 2.0 : 1.0; }

/// Draws of gradients, by what they are beyond the first ones.
class Draws {
 public:
  Draws(const std::vector<at::Tensor>& base, size_t inputs, const at::Tensor& like)
      : base_(base), inputs_(inputs), like_(like), sum_(base.size()) {}

  void add(const std::vector<at::Tensor>& gradients) {
    std::vector<at::Tensor> differences(gradients.size());
    for (size_t number = 0; number < gradients.size(); ++number) {
      if (gradients[number].defined()) {
        differences[number] = gradients[number] - base_[number];
        sum_[number] = sum_[number].defined() ? sum_[number] + differences[number] : differences[number];
      }
    }
    norms_.add(squared_norms(differences, inputs_, like_));
    ++count_;
  }

  /// Their variance, without bias; `with_base`: the first ones are a draw, too.
  SquaredNorms variance(bool with_base) const {
    const double count = count_ + (with_base ? 1.0 : 0.0);
    const SquaredNorms of_sum = squared_norms(sum_, inputs_, like_);
    const auto of = [&](const at::Tensor& norm, const at::Tensor& norm_of_sum) {
      return (norm - norm_of_sum / count) / (count - 1);
    };
    SquaredNorms variance{.parameters = of(norms_.parameters, of_sum.parameters), .inputs = {}};
    for (size_t input = 0; input < inputs_; ++input) {
      variance.inputs.push_back(of(norms_.inputs[input], of_sum.inputs[input]));
    }
    return variance;
  }

 private:
  const std::vector<at::Tensor>& base_;
  size_t inputs_;
  const at::Tensor& like_;
  std::vector<at::Tensor> sum_;
  SquaredNorms norms_;
  double count_ = 0;
};

bool is_packed(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kByte && tensor.dim() == 1 && tensor.numel() > kHeaderBytes;
}

}  // namespace

void SquaredNorms::add(const SquaredNorms& other) {
  if (!defined()) {
    *this = other;
    return;
  }
  parameters = parameters + other.parameters;
  for (size_t input = 0; input < inputs.size(); ++input) {
    inputs[input] = inputs[input] + other.inputs[input];
  }
}

std::pair<std::shared_ptr<MeasuredRun>, size_t> MeasuredRuns::add(Forward forward) {
  const Plan& plan = forward.prepared.plan;
  auto run =
      std::make_shared<MeasuredRun>(MeasuredRun{.block = plan.name,
                                                .values = saved_values(plan, forward.schedule),
                                                .elements = {},
                                                .saved_bytes = forward.prepared.saved_bytes,
                                                .sources = std::move(forward.sources),
                                                .variance_of_rounding = variance_of_rounding(plan.options.rounding),
                                                .copies = {},
                                                .responses = std::vector<SquaredNorms>(plan.program.results.size())});
  const std::vector<Sizes> sizes = infer_sizes(plan.program, forward.sizes, forward.parameters, forward.integers);
  const std::lock_guard lock(mutex);
  const size_t number = runs.size();
  for (size_t place = 0; place < run->values.size(); ++place) {
    const SavedValue& value = run->values[place];
    int64_t elements = 1;
    for (const c10::SymInt& extent : sizes[value.value.number]) {
      elements *= extent.guard_int(__FILE__, __LINE__);
    }
    run->elements.push_back(elements);
    const at::Tensor& packed = forward.saved[value.tensor];
    if (is_packed(packed)) {
      owners[packed.const_data_ptr()] = {number, place};
      run->copies.push_back({.saved_by = {number, place}, .is_imported = false, .tensor = value.tensor});
    }
  }
  size_t tensor = 0;
  for (const Import& import : plan.imports) {
    const auto owner = owners.find(forward.copies[tensor].const_data_ptr());
    if (owner != owners.end() && forward.schedule.first_copy_reader.contains(import.input)) {
      run->copies.push_back({.saved_by = owner->second, .is_imported = true, .tensor = tensor});
    }
    tensor += import.format.parts();
  }
  runs.push_back(run);
  return {std::move(run), number};
}

std::shared_ptr<MeasuredRuns> runs_to_measure(const Plan& plan) {
  if (!measures) {
    return nullptr;
  }
  const std::lock_guard lock(current_mutex);
  const bool takes_part =
      current != nullptr && std::any_of(current->prefixes.begin(), current->prefixes.end(),
                                        [&](const std::string& prefix) { return plan.name.starts_with(prefix); });
  return takes_part ? current : nullptr;
}

bool begin_to_measure(std::shared_ptr<MeasuredRuns> runs) {
  const std::lock_guard lock(current_mutex);
  if (current != nullptr) {
    return false;
  }
  current = std::move(runs);
  measures = true;
  return true;
}

void stop_measuring() {
  const std::lock_guard lock(current_mutex);
  measures = false;
  current.reset();
}

std::vector<at::Tensor> measured_backward(MeasuredRun& measured, const PreparedPlan& prepared, const Schedule& schedule,
                                          const BackwardArguments& arguments, const std::vector<bool>& wanted,
                                          const std::vector<at::ScalarType>& input_dtypes) {
  const auto gradients = [&](const BackwardArguments& given) {
    return run_backward(prepared.plan, schedule, given, wanted, input_dtypes);
  };
  const size_t inputs = prepared.plan.program.inputs;
  // All tensors are held here, so that nothing is computed in their place.
  std::vector<at::Tensor> base = gradients(arguments);
  const at::Tensor& like = *std::find_if(arguments.grads.begin(), arguments.grads.end(),
                                         [](const at::Tensor& grad) { return grad.defined(); });
  for (MeasuredRun::Copy& copy : measured.copies) {
    Draws draws(base, inputs, like);
    for (const int64_t seed : kSeeds) {
      BackwardArguments other = arguments;
      at::Tensor& packed = (copy.is_imported ? other.copies : other.saved)[copy.tensor];
      packed = with_other_noise(packed, seed);
      draws.add(gradients(other));
    }
    copy.noise.add(draws.variance(prepared.plan.options.rounding == Rounding::kDithered));
  }
  for (size_t result = 0; result < measured.responses.size(); ++result) {
    const at::Tensor& grad = arguments.grads[result];
    if (!grad.defined()) {
      continue;
    }
    BackwardArguments other = arguments;
    other.grads.assign(other.grads.size(), {});
    // Its elements with random signs: noise as large as the gradient is, wherever that is large.
    at::Tensor noise = at::empty_like(grad).bernoulli_().mul_(2).sub_(1).mul_(grad);
    const at::Tensor norm = squared_norm(noise).clamp_min_(1e-300);
    other.grads[result] = std::move(noise);
    SquaredNorms response = squared_norms(gradients(other), inputs, like);
    response.parameters /= norm;
    for (at::Tensor& input : response.inputs) {
      input /= norm;
    }
    measured.responses[result] = std::move(response);  // of the last backward, if there are several
  }
  return base;
}

}  // namespace actnn::blocks
