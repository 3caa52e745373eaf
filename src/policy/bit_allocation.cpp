#include "actnn/policy/bit_allocation.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <limits>
#include <queue>
#include <tuple>

#include "actnn/core/bit_allocation.h"
#include "actnn/core/bit_packing.h"
#include "src/ops/dispatch.h"

namespace actnn {
namespace {

constexpr const char* kBitAllocationName = "actnn::allocate_bits";
constexpr const char* kNoiseOp = "actnn::allocate_bits_for_noise";
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// What one bit less costs, per weight.
double price(double sensitivity, int64_t weight, int bits) {
  return rise_of_variance(counted_sensitivity(sensitivity), bits) / static_cast<double>(weight);
}

/// `rounding_variance` of a tensor of bits: the same operations, so the same results.
at::Tensor variance(const at::Tensor& bits) {
  const at::Tensor levels = (at::ones_like(bits).bitwise_left_shift(bits) - 1).to(at::kDouble);
  return (levels * levels).reciprocal();
}

void check_vector(const char* op, const char* argument, const at::Tensor& tensor, const at::Tensor& bits,
                  bool has_dtype, const char* dtype) {
  TORCH_CHECK_TYPE(tensor.defined(), op, ": ", argument, " must be a tensor, got none");
  TORCH_CHECK_TYPE(has_dtype, op, ": ", argument, " must be ", dtype, ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.sym_numel() == bits.sym_numel(), op, ": ", argument,
                    " must have the shape of bits, [", bits.sym_numel(), "], got ", tensor.sym_sizes());
  TORCH_CHECK_VALUE(tensor.device() == bits.device(), op, ": ", argument, " must be on the device of bits, ",
                    bits.device(), ", got ", tensor.device());
}

void check_arguments(const char* op, const at::Tensor& bits, const at::Tensor& sensitivity, const at::Tensor& weight,
                     const std::optional<at::Tensor>& fewest) {
  TORCH_CHECK_TYPE(bits.defined(), op, ": bits must be a tensor, got none");
  TORCH_CHECK_TYPE(bits.scalar_type() == at::kByte, op, ": bits must be uint8, got ", bits.scalar_type());
  TORCH_CHECK_VALUE(bits.dim() == 1, op, ": bits must be 1-D, got shape ", bits.sym_sizes());
  const at::ScalarType dtype = sensitivity.scalar_type();
  check_vector(op, "sensitivity", sensitivity, bits, dtype == at::kFloat || dtype == at::kDouble, "float32 or float64");
  check_vector(op, "weight", weight, bits, weight.scalar_type() == at::kLong, "int64");
  if (fewest) {
    check_vector(op, "fewest", *fewest, bits, fewest->scalar_type() == at::kByte, "uint8");
  }
}

/// Every decrement of every element, 8 to 7 bits first; [elements * 7].
struct Decrements {
  at::Tensor possible;  ///< from the bits given, and not to fewer than the fewest
  at::Tensor order;     ///< the order in which they are taken: the cheapest first, of equals the first element's
  at::Tensor rises;     ///< float64: what each adds to the variance
  at::Tensor gains;     ///< int64: what each spares

  at::Tensor in_order(const at::Tensor& values) const { return values.index_select(0, order); }
};

// With masked_fill: at::where copies a number to the device and waits.
Decrements decrements(const at::Tensor& bits, const at::Tensor& sensitivity, const at::Tensor& weight,
                      const std::optional<at::Tensor>& fewest) {
  const at::Tensor from = at::arange(kMaxBits, kMinBits, -1, weight.options());
  at::Tensor possible = from.unsqueeze(0) <= bits.to(at::kLong).unsqueeze(1);
  if (fewest) {
    possible = possible & (from.unsqueeze(0) > fewest->to(at::kLong).unsqueeze(1));
  }
  const at::Tensor positive = sensitivity.to(at::kDouble).clamp_min(0.0).unsqueeze(1);
  const at::Tensor rises = positive * (variance(from - 1) - variance(from));
  const at::Tensor prices = rises / weight.to(at::kDouble).unsqueeze(1);
  const at::Tensor keys = at::nan_to_num(prices, kInfinity, kInfinity).masked_fill(~possible, kInfinity).flatten();
  return {.possible = possible.flatten(),
          .order = std::get<1>(at::sort(keys, /*stable=*/true, /*dim=*/0, /*descending=*/false)),
          .rises = at::nan_to_num(rises, kInfinity, kInfinity).flatten(),
          .gains = (possible * weight.unsqueeze(1)).flatten()};
}

/// `bits` minus the decrements taken, which are given in order.
at::Tensor take(const at::Tensor& bits, const Decrements& all, const at::Tensor& taken) {
  const at::Tensor real = taken & all.in_order(all.possible);
  const at::Tensor fewer = at::zeros_like(all.gains).scatter(0, all.order, real.to(at::kLong));
  return (bits - fewer.view({-1, kMaxBits - kMinBits}).sum(1)).to(at::kByte);
}

at::Tensor allocate(const at::Tensor& bits, const at::Tensor& sensitivity, const at::Tensor& weight, int64_t target,
                    const std::optional<at::Tensor>& fewest) {
  check_arguments(kBitAllocationName, bits, sensitivity, weight, fewest);
  const Decrements all = decrements(bits, sensitivity, weight, fewest);
  const at::Tensor gains = all.in_order(all.gains);
  const at::Tensor excess = (bits * weight).sum() - target;
  return take(bits, all, gains.cumsum(0) - gains < excess);
}

at::Tensor allocate_for_noise(const at::Tensor& bits, const at::Tensor& sensitivity, const at::Tensor& weight,
                              const at::Tensor& allowed, const std::optional<at::Tensor>& fewest) {
  check_arguments(kNoiseOp, bits, sensitivity, weight, fewest);
  TORCH_CHECK_VALUE(allowed.dim() == 0 && allowed.is_floating_point() && allowed.device() == bits.device(), kNoiseOp,
                    ": allowed must be a floating-point scalar on ", bits.device(), ", got ", allowed.toString(),
                    " of shape ", allowed.sym_sizes());
  const Decrements all = decrements(bits, sensitivity, weight, fewest);
  const at::Tensor rises = all.in_order(all.rises).masked_fill(~all.in_order(all.possible), 0.0);
  const at::Tensor now = (sensitivity.to(at::kDouble).clamp_min(0.0) * variance(bits.to(at::kLong))).sum();
  return take(bits, all, now + rises.cumsum(0) <= allowed);
}

at::Tensor allocate_autograd(const at::Tensor& bits, const at::Tensor& sensitivity, const at::Tensor& weight,
                             int64_t target, const std::optional<at::Tensor>& fewest) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return allocate_bits(bits, sensitivity, weight, target, fewest);
}

at::Tensor allocate_for_noise_autograd(const at::Tensor& bits, const at::Tensor& sensitivity, const at::Tensor& weight,
                                       const at::Tensor& allowed, const std::optional<at::Tensor>& fewest) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return allocate_bits_for_noise(bits, sensitivity, weight, allowed, fewest);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def("allocate_bits(Tensor bits, Tensor sensitivity, Tensor weight, int target, Tensor? fewest=None) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "allocate_bits_for_noise(Tensor bits, Tensor sensitivity, Tensor weight, Tensor allowed, Tensor? fewest=None) "
      "-> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("allocate_bits", allocate);
  m.impl("allocate_bits_for_noise", allocate_for_noise);
}
TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("allocate_bits", allocate_autograd);
  m.impl("allocate_bits_for_noise", allocate_for_noise_autograd);
}

at::Tensor allocate_bits(const at::Tensor& bits, const at::Tensor& sensitivity, const at::Tensor& weight,
                         int64_t target, const std::optional<at::Tensor>& fewest) {
  static const auto kHandle = find_op<decltype(allocate)>(kBitAllocationName);
  return kHandle.call(bits, sensitivity, weight, target, fewest);
}

at::Tensor allocate_bits_for_noise(const at::Tensor& bits, const at::Tensor& sensitivity, const at::Tensor& weight,
                                   const at::Tensor& allowed, const std::optional<at::Tensor>& fewest) {
  static const auto kHandle = find_op<decltype(allocate_for_noise)>(kNoiseOp);
  return kHandle.call(bits, sensitivity, weight, allowed, fewest);
}

std::vector<uint8_t> allocate_bits_greedily(std::vector<uint8_t> bits, const std::vector<double>& sensitivity,
                                            const std::vector<int64_t>& weight, int64_t target,
                                            const std::vector<uint8_t>& fewest) {
  using Offer = std::tuple<double, size_t>;  // the cheapest first, of equals the first element
  std::priority_queue<Offer, std::vector<Offer>, std::greater<>> offers;
  const auto offer = [&](size_t i) {
    if (bits[i] > (fewest.empty() ? kMinBits : fewest[i])) {
      offers.emplace(price(sensitivity[i], weight[i], bits[i]), i);
    }
  };
  int64_t total = 0;
  for (size_t i = 0; i < bits.size(); ++i) {
    total += weight[i] * bits[i];
    offer(i);
  }
  while (total > target && !offers.empty()) {
    const size_t i = std::get<1>(offers.top());
    offers.pop();
    --bits[i];
    total -= weight[i];
    offer(i);
  }
  return bits;
}

}  // namespace actnn
