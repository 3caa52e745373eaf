#include "actnn/policy/sample_bits.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>

#include "actnn/core/bit_allocation.h"
#include "actnn/core/bit_packing.h"
#include "actnn/cpu/bit_allocation.h"
#include "src/ops/dispatch.h"
#include "src/policy/sample_bits_checks.h"

namespace actnn {
namespace {

constexpr const char* kAllocate = "actnn::allocate_sample_bits";
constexpr const char* kUpdate = "actnn::update_gradient_norm_";
using OptionalTensor = std::optional<at::Tensor>;

void check_float(const char* op, const char* argument, const at::Tensor& tensor, int64_t dimensions) {
  TORCH_CHECK_TYPE(tensor.defined(), op, ": ", argument, " must be a tensor, got none");
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat, op, ": ", argument, " must be float32, got ",
                   tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.dim() == dimensions, op, ": ", argument, " must be ", dimensions, "-D, got shape ",
                    tensor.sym_sizes());
}

void check_same_device(const char* op, const char* argument, const at::Tensor& tensor, const char* other,
                       c10::Device device) {
  TORCH_CHECK_VALUE(tensor.device() == device, op, ": ", argument, " must be on the device of ", other, ", ", device,
                    ", got ", tensor.device());
}

}  // namespace

void check_allocate_sample_bits(const at::Tensor& range, const OptionalTensor& gradient, int64_t initial_bits) {
  check_float(kAllocate, "range", range, 1);
  if (gradient) {
    check_float(kAllocate, "gradient", *gradient, 0);
    check_same_device(kAllocate, "gradient", *gradient, "range", range.device());
  }
  TORCH_CHECK_VALUE(initial_bits >= kMinBits && initial_bits <= kMaxBits, kAllocate,
                    ": initial_bits must be in 1..8, got ", initial_bits);
}

void check_update_gradient_norm(const at::Tensor& gradient, const at::Tensor& norms) {
  check_float(kUpdate, "gradient", gradient, 0);
  check_float(kUpdate, "norms", norms, 1);
  check_same_device(kUpdate, "norms", norms, "gradient", gradient.device());
}

at::Tensor empty_sample_bits(const at::Tensor& range) {
  return at::empty_like(range, range.options().dtype(at::kByte), at::MemoryFormat::Contiguous);
}

namespace {

std::tuple<at::Tensor, at::Tensor> allocate_sample_bits_cpu(const at::Tensor& range, const OptionalTensor& gradient,
                                                            double factor, int64_t initial_bits, int64_t total_bits) {
  check_allocate_sample_bits(range, gradient, initial_bits);
  const int64_t samples = range.size(0);
  const at::Tensor dense = range.contiguous();
  at::Tensor sensitivity = at::empty_like(dense);
  at::Tensor bits = empty_sample_bits(dense);
  const float norm = gradient ? *gradient->const_data_ptr<float>() : 0.0F;
  std::transform(dense.const_data_ptr<float>(), dense.const_data_ptr<float>() + samples,
                 sensitivity.mutable_data_ptr<float>(),
                 [&](float of_sample) { return sample_sensitivity(of_sample, static_cast<float>(factor), norm); });
  cpu::allocate_sample_bits(sensitivity.const_data_ptr<float>(), samples, static_cast<int>(initial_bits),
                            initial_bits * samples - total_bits, bits.mutable_data_ptr<uint8_t>());
  return {std::move(sensitivity), std::move(bits)};
}

at::Tensor update_cpu(at::Tensor& gradient, const at::Tensor& norms) {
  check_update_gradient_norm(gradient, norms);
  const at::Tensor dense = norms.contiguous();
  double sum = 0.0;
  for (int64_t sample = 0; sample < dense.numel(); ++sample) {
    sum += dense.const_data_ptr<float>()[sample];
  }
  auto* norm = gradient.mutable_data_ptr<float>();
  *norm = updated_gradient_norm(*norm, static_cast<float>(sum / static_cast<double>(dense.numel())));
  at::Tensor known = at::empty_like(gradient);
  *known.mutable_data_ptr<float>() = *norm > 0.0F ? *norm : 1.0F;
  return known;
}

std::tuple<at::Tensor, at::Tensor> allocate_sample_bits_meta(const at::Tensor& range, const OptionalTensor& gradient,
                                                             double /*factor*/, int64_t initial_bits,
                                                             int64_t /*total_bits*/) {
  check_allocate_sample_bits(range, gradient, initial_bits);
  return {at::empty_like(range, at::MemoryFormat::Contiguous), empty_sample_bits(range)};
}

at::Tensor update_meta(at::Tensor& gradient, const at::Tensor& norms) {
  check_update_gradient_norm(gradient, norms);
  return at::empty_like(gradient);
}

// What is chosen has no gradient.
std::tuple<at::Tensor, at::Tensor> allocate_sample_bits_autograd(const at::Tensor& range,
                                                                 const OptionalTensor& gradient, double factor,
                                                                 int64_t initial_bits, int64_t total_bits) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return allocate_sample_bits(range, gradient, factor, initial_bits, total_bits);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "allocate_sample_bits(Tensor range, Tensor? gradient, float factor, int initial_bits, int total_bits) -> "
      "(Tensor sensitivity, Tensor bits)",
      {at::Tag::pt2_compliant_tag});
  m.def("update_gradient_norm_(Tensor(a!) gradient, Tensor norms) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(actnn, CPU, m) {
  m.impl("allocate_sample_bits", allocate_sample_bits_cpu);
  m.impl("update_gradient_norm_", update_cpu);
}

TORCH_LIBRARY_IMPL(actnn, Meta, m) {
  m.impl("allocate_sample_bits", allocate_sample_bits_meta);
  m.impl("update_gradient_norm_", update_meta);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("allocate_sample_bits", allocate_sample_bits_autograd);
  m.impl("update_gradient_norm_", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(actnn, ADInplaceOrView, m) {
  m.impl("update_gradient_norm_", torch::autograd::autogradNotImplementedInplaceOrViewFallback());
}

std::tuple<at::Tensor, at::Tensor> allocate_sample_bits(const at::Tensor& range, const OptionalTensor& gradient,
                                                        double factor, int64_t initial_bits, int64_t total_bits) {
  static const auto kOp =
      find_op<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const OptionalTensor&, double, int64_t, int64_t)>(
          kAllocate);
  return kOp.call(range, gradient, factor, initial_bits, total_bits);
}

at::Tensor update_gradient_norm_(at::Tensor& gradient, const at::Tensor& norms) {
  static const auto kOp = find_op<at::Tensor(at::Tensor&, const at::Tensor&)>(kUpdate);
  return kOp.call(gradient, norms);
}

}  // namespace actnn
