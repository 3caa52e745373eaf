#include "actnn/ops/mask.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "actnn/core/layout.h"
#include "actnn/cpu/mask.h"
#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/mask_checks.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

constexpr const char* kPackMask = "actnn::pack_mask";
constexpr const char* kUnpackMask = "actnn::unpack_mask";
constexpr const char* kReluPack = "actnn::relu_pack";
constexpr const char* kReluPackInPlace = "actnn::relu_pack_";
constexpr const char* kApplyMask = "actnn::apply_mask";

}  // namespace

void check_pack_mask(const at::Tensor& mask) {
  TORCH_CHECK_TYPE(mask.defined() && mask.scalar_type() == at::kBool, kPackMask, ": mask must be a bool tensor, got ",
                   mask.defined() ? mask.toString() : "none");
}

void check_unpack_mask(const at::Tensor& packed, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  check_dense(kUnpackMask, size, stride);
  check_packed(kUnpackMask, "packed", packed, mask_bytes(element_count(size)));
}

ElementType check_relu_pack(const at::Tensor& input) { return check_floating(kReluPack, "input", input); }

ElementType check_relu_pack_in_place(const at::Tensor& input) {
  const ElementType type = check_floating(kReluPackInPlace, "input", input);
  TORCH_CHECK_VALUE(input.is_non_overlapping_and_dense(), kReluPackInPlace,
                    ": input must be dense (no gaps, no overlaps), got size ", input.sym_sizes(), " and stride ",
                    input.sym_strides());
  return type;
}

ElementType check_apply_mask(const at::Tensor& input, const at::Tensor& mask, c10::SymIntArrayRef stride) {
  const ElementType type = check_floating(kApplyMask, "input", input);
  check_dense(kApplyMask, input.sym_sizes(), stride);
  check_packed(kApplyMask, "mask", mask, mask_bytes(input.sym_numel()));
  TORCH_CHECK_VALUE(mask.device() == input.device(), kApplyMask, ": mask must be on the input's device ",
                    input.device(), ", got ", mask.device());
  return type;
}

namespace {

at::Tensor pack_mask_cpu(const at::Tensor& mask) {
  check_pack_mask(mask);
  const at::Tensor dense = storage_order(mask);
  const at::Tensor packed = empty_bytes(mask_bytes(dense.numel()), mask);
  const auto* bools = static_cast<const uint8_t*>(dense.const_data_ptr());
  auto* bytes = packed.mutable_data_ptr<uint8_t>();
  at::parallel_for(0, packed.numel(), parallel_grain(kOctet),
                   [&](int64_t first, int64_t last) { cpu::pack_mask(bools, dense.numel(), bytes, first, last); });
  return packed;
}

at::Tensor pack_mask_meta(const at::Tensor& mask) {
  check_pack_mask(mask);
  return empty_bytes(mask_bytes(mask.sym_numel()), mask);
}

at::Tensor unpack_mask_cpu(const at::Tensor& packed, c10::IntArrayRef size, c10::IntArrayRef stride) {
  check_unpack_mask(packed, c10::fromIntArrayRefSlow(size), c10::fromIntArrayRefSlow(stride));
  at::Tensor mask = at::empty_strided(size, stride, packed.options().dtype(at::kBool));
  const auto* bytes = packed.const_data_ptr<uint8_t>();
  auto* bools = static_cast<uint8_t*>(mask.mutable_data_ptr());
  at::parallel_for(0, packed.numel(), parallel_grain(kOctet),
                   [&](int64_t first, int64_t last) { cpu::unpack_mask(bytes, mask.numel(), bools, first, last); });
  return mask;
}

at::Tensor unpack_mask_meta(const at::Tensor& packed, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  check_unpack_mask(packed, size, stride);
  return at::empty_strided_symint(size, stride, packed.options().dtype(at::kBool));
}

at::Tensor relu_into(const at::Tensor& input, const at::Tensor& output, ElementType type) {
  const at::Tensor mask = empty_bytes(mask_bytes(input.numel()), input);
  auto* bytes = mask.mutable_data_ptr<uint8_t>();
  const void* source = input.const_data_ptr();
  void* target = output.mutable_data_ptr();
  at::parallel_for(0, mask.numel(), parallel_grain(kOctet), [&](int64_t first, int64_t last) {
    cpu::relu(source, type, input.numel(), target, bytes, first, last);
  });
  return mask;
}

std::tuple<at::Tensor, at::Tensor> relu_pack_cpu(const at::Tensor& input) {
  const ElementType type = check_relu_pack(input);
  const at::Tensor dense = storage_order(input);
  at::Tensor output = at::empty_like(dense);
  at::Tensor mask = relu_into(dense, output, type);
  return {output, mask};
}

std::tuple<at::Tensor, at::Tensor> relu_pack_meta(const at::Tensor& input) {
  check_relu_pack(input);
  return {at::empty_like(storage_order(input)), empty_bytes(mask_bytes(input.sym_numel()), input)};
}

at::Tensor relu_pack_in_place_cpu(const at::Tensor& input) {
  return relu_into(input, input, check_relu_pack_in_place(input));
}

at::Tensor relu_pack_in_place_meta(const at::Tensor& input) {
  check_relu_pack_in_place(input);
  return empty_bytes(mask_bytes(input.sym_numel()), input);
}

at::Tensor apply_mask_cpu(const at::Tensor& input, const at::Tensor& mask, c10::IntArrayRef stride) {
  const auto symbolic_stride = c10::fromIntArrayRefSlow(stride);
  const ElementType type = check_apply_mask(input, mask, symbolic_stride);
  const at::Tensor source = with_strides(input, symbolic_stride);
  at::Tensor output = at::empty_strided(input.sizes(), stride, input.options());
  const auto* bytes = mask.const_data_ptr<uint8_t>();
  at::parallel_for(0, mask.numel(), parallel_grain(kOctet), [&](int64_t first, int64_t last) {
    cpu::apply_mask(source.const_data_ptr(), type, source.numel(), bytes, output.mutable_data_ptr(), first, last);
  });
  return output;
}

at::Tensor apply_mask_meta(const at::Tensor& input, const at::Tensor& mask, c10::SymIntArrayRef stride) {
  check_apply_mask(input, mask, stride);
  return at::empty_strided_symint(input.sym_sizes(), stride, input.options());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def("pack_mask(Tensor mask) -> Tensor", tags);
  m.def("unpack_mask(Tensor packed, SymInt[] size, SymInt[] stride) -> Tensor", tags);
  m.def("relu_pack(Tensor input) -> (Tensor output, Tensor mask)", tags);
  m.def("relu_pack_(Tensor(a!) input) -> Tensor", tags);
  m.def("apply_mask(Tensor input, Tensor mask, SymInt[] stride) -> Tensor", tags);
}

TORCH_LIBRARY_IMPL(actnn, CPU, m) {
  m.impl("pack_mask", pack_mask_cpu);
  m.impl("unpack_mask", unpack_mask_cpu);
  m.impl("relu_pack", relu_pack_cpu);
  m.impl("relu_pack_", relu_pack_in_place_cpu);
  m.impl("apply_mask", apply_mask_cpu);
}

TORCH_LIBRARY_IMPL(actnn, Meta, m) {
  m.impl("pack_mask", pack_mask_meta);
  m.impl("unpack_mask", unpack_mask_meta);
  m.impl("relu_pack", relu_pack_meta);
  m.impl("relu_pack_", relu_pack_in_place_meta);
  m.impl("apply_mask", apply_mask_meta);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) {
  m.impl("pack_mask", torch::autograd::autogradNotImplementedFallback());
  m.impl("unpack_mask", torch::autograd::autogradNotImplementedFallback());
  m.impl("relu_pack", torch::autograd::autogradNotImplementedFallback());
  m.impl("relu_pack_", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(actnn, ADInplaceOrView, m) {
  m.impl("relu_pack_", torch::autograd::autogradNotImplementedInplaceOrViewFallback());
}

at::Tensor pack_mask(const at::Tensor& mask) {
  static const auto kOp = find_op<at::Tensor(const at::Tensor&)>(kPackMask);
  return kOp.call(mask);
}

at::Tensor unpack_mask(const at::Tensor& packed, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  static const auto kOp = find_op<at::Tensor(const at::Tensor&, c10::SymIntArrayRef, c10::SymIntArrayRef)>(kUnpackMask);
  return kOp.call(packed, size, stride);
}

std::tuple<at::Tensor, at::Tensor> relu_pack(const at::Tensor& input) {
  static const auto kOp = find_op<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&)>(kReluPack);
  return kOp.call(input);
}

at::Tensor relu_pack_(at::Tensor& input) {
  static const auto kOp = find_op<at::Tensor(const at::Tensor&)>(kReluPackInPlace);
  return kOp.call(input);
}

at::Tensor apply_mask(const at::Tensor& input, const at::Tensor& mask, c10::SymIntArrayRef stride) {
  static const auto kOp = find_op<at::Tensor(const at::Tensor&, const at::Tensor&, c10::SymIntArrayRef)>(kApplyMask);
  return kOp.call(input, mask, stride);
}

}  // namespace actnn
