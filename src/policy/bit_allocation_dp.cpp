#include "actnn/policy/bit_allocation_dp.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "actnn/core/bit_packing.h"
#include "src/ops/dispatch.h"

namespace actnn {
namespace {

constexpr const char* kBitAllocationDpName = "actnn::allocate_bits_dp";
constexpr int64_t kMaxStates = 1024;
constexpr int64_t kMaxTable = int64_t{1} << 30;

/// One way to treat an element: `bits`, kept with probability `kept` / states. It costs bits * kept units.
struct Choice {
  int64_t cost;
  int bits;
  int64_t kept;
  double of_norm;         ///< variance per squared norm, (1 - p) / p
  double of_sensitivity;  ///< variance per sensitivity, 1 / (p (2^bits - 1)^2)
};

/// All choices, the cheapest first.
std::vector<Choice> all_choices(int64_t max_bits, int64_t states) {
  std::vector<Choice> choices;
  for (int bits = kMinBits; bits <= max_bits; ++bits) {
    for (int64_t kept = 1; kept <= states; ++kept) {
      const double probability = static_cast<double>(kept) / static_cast<double>(states);
      const double levels = (1 << bits) - 1;
      choices.push_back({.cost = bits * kept,
                         .bits = bits,
                         .kept = kept,
                         .of_norm = (1.0 - probability) / probability,
                         .of_sensitivity = 1.0 / (probability * levels * levels)});
    }
  }
  std::stable_sort(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) { return a.cost < b.cost; });
  return choices;
}

void check_vector(const char* argument, const at::Tensor& tensor, const at::Tensor& first) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble, kBitAllocationDpName,
                   ": ", argument, " must be float32 or float64, got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.sym_numel() == first.sym_numel(), kBitAllocationDpName, ": ", argument,
                    " must be 1-D with ", first.sym_numel(), " elements, as square_norm, got shape ",
                    tensor.sym_sizes());
  TORCH_CHECK_VALUE(tensor.device() == first.device(), kBitAllocationDpName, ": ", argument,
                    " must be on the device of square_norm, ", first.device(), ", got ", tensor.device());
}

void check_arguments(const at::Tensor& square_norm, const at::Tensor& sensitivity, int64_t max_bits, double target,
                     int64_t states) {
  check_vector("square_norm", square_norm, square_norm);
  check_vector("sensitivity", sensitivity, square_norm);
  TORCH_CHECK_VALUE(max_bits >= kMinBits && max_bits <= kMaxBits, kBitAllocationDpName,
                    ": max_bits must be in 1..8, got ", max_bits);
  TORCH_CHECK_VALUE(states >= 1 && states <= kMaxStates, kBitAllocationDpName, ": states must be in 1..", kMaxStates,
                    ", got ", states);
  TORCH_CHECK_VALUE(std::isfinite(target) && target * static_cast<double>(states) >= 1.0, kBitAllocationDpName,
                    ": target must be finite and at least 1 / states, the cheapest choice, got ", target, " with ",
                    states, " states");
}

/// The elements as doubles, without what a sum cannot bear.
std::vector<double> cleaned(const at::Tensor& tensor) {
  const at::Tensor values = tensor.detach().to(at::kCPU, at::kDouble).contiguous();
  std::vector<double> result(values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel());
  constexpr double kLargest = std::numeric_limits<float>::max();
  for (double& value : result) {
    value = std::isnan(value) ? kLargest : std::clamp(value, 0.0, kLargest);
  }
  return result;
}

std::tuple<at::Tensor, at::Tensor> allocate_dp(const at::Tensor& square_norm, const at::Tensor& sensitivity,
                                               int64_t max_bits, double target, int64_t states) {
  check_arguments(square_norm, sensitivity, max_bits, target, states);
  const std::vector<double> norms = cleaned(square_norm);
  const std::vector<double> sensitivities = cleaned(sensitivity);
  const auto count = static_cast<int64_t>(norms.size());
  // More than the most expensive choice for every element changes nothing.
  const double budget = std::min(target, static_cast<double>(max_bits)) * static_cast<double>(count * states);
  TORCH_CHECK_VALUE(budget * static_cast<double>(count) <= static_cast<double>(kMaxTable), kBitAllocationDpName,
                    ": N * N * target * states must be at most 2^30, got ", budget * static_cast<double>(count));
  // Every element costs at least a unit; rounding must not make the budget smaller than that.
  const int64_t units = std::max(static_cast<int64_t>(budget), count);
  const std::vector<Choice> choices = all_choices(max_bits, states);

  // best[u]: the least variance of the elements so far with at most u units; chosen[i][u]: element i's part in it.
  std::vector<double> best(units + 1, 0.0);
  std::vector<double> next(units + 1);
  std::vector<uint16_t> chosen(count * (units + 1));
  std::vector<double> variances(choices.size());
  for (int64_t i = 0; i < count; ++i) {
    for (size_t c = 0; c < choices.size(); ++c) {
      variances[c] = choices[c].of_norm * norms[i] + choices[c].of_sensitivity * sensitivities[i];
    }
    for (int64_t u = 0; u <= units; ++u) {
      double least = std::numeric_limits<double>::infinity();
      for (size_t c = 0; c < choices.size() && choices[c].cost <= u; ++c) {
        const double variance = best[u - choices[c].cost] + variances[c];
        if (variance < least) {
          least = variance;
          chosen[i * (units + 1) + u] = static_cast<uint16_t>(c);
        }
      }
      next[u] = least;
    }
    best.swap(next);
  }

  const at::Tensor bits = at::empty({count}, at::kByte);
  const at::Tensor probability = at::empty({count}, at::kDouble);
  int64_t left = units;
  for (int64_t i = count; i-- > 0;) {
    const Choice& choice = choices[chosen[i * (units + 1) + left]];
    bits.mutable_data_ptr<uint8_t>()[i] = static_cast<uint8_t>(choice.bits);
    probability.mutable_data_ptr<double>()[i] = static_cast<double>(choice.kept) / static_cast<double>(states);
    left -= choice.cost;
  }
  return {bits.to(square_norm.device()), probability.to(square_norm.options())};
}

std::tuple<at::Tensor, at::Tensor> allocate_dp_meta(const at::Tensor& square_norm, const at::Tensor& sensitivity,
                                                    int64_t max_bits, double target, int64_t states) {
  check_arguments(square_norm, sensitivity, max_bits, target, states);
  return {at::empty_symint(square_norm.sym_sizes(), square_norm.options().dtype(at::kByte)),
          at::empty_symint(square_norm.sym_sizes(), square_norm.options())};
}

std::tuple<at::Tensor, at::Tensor> allocate_dp_autograd(const at::Tensor& square_norm, const at::Tensor& sensitivity,
                                                        int64_t max_bits, double target, int64_t states) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return allocate_bits_dp(square_norm, sensitivity, max_bits, target, states);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "allocate_bits_dp(Tensor square_norm, Tensor sensitivity, int max_bits, float target, int states) -> "
      "(Tensor bits, Tensor probability)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) { m.impl("allocate_bits_dp", allocate_dp); }
TORCH_LIBRARY_IMPL(actnn, Meta, m) { m.impl("allocate_bits_dp", allocate_dp_meta); }
TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("allocate_bits_dp", allocate_dp_autograd); }

std::tuple<at::Tensor, at::Tensor> allocate_bits_dp(const at::Tensor& square_norm, const at::Tensor& sensitivity,
                                                    int64_t max_bits, double target, int64_t states) {
  static const auto kHandle =
      find_op<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, int64_t, double, int64_t)>(
          kBitAllocationDpName);
  return kHandle.call(square_norm, sensitivity, max_bits, target, states);
}

}  // namespace actnn
