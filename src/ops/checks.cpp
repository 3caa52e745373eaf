#include "src/ops/checks.h"

#include <algorithm>
#include <vector>

#include "actnn/core/layout.h"

namespace actnn {

ElementType check_floating(const char* op, const char* argument, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.defined(), op, ": ", argument, " must be a tensor, got none");
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided, op, ": ", argument, " must be a strided tensor, got layout ",
                    tensor.layout());
  TORCH_CHECK_NOT_IMPLEMENTED(
      !tensor._fw_grad(/*level=*/0).defined(), op, ": ", argument,
      " must not be a dual tensor: there are no forward-mode derivatives; use torch's own layer");
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return ElementType::kFloat32;
    case at::kHalf:
      return ElementType::kFloat16;
    case at::kBFloat16:
      return ElementType::kBFloat16;
    default:
      TORCH_CHECK_TYPE(false, op, ": ", argument, " must be float32, float16 or bfloat16, got ", tensor.scalar_type());
  }
}

at::ScalarType scalar_type_of(ElementType type) {
  return type == ElementType::kFloat32 ? at::kFloat : type == ElementType::kFloat16 ? at::kHalf : at::kBFloat16;
}

ElementType check_element_type(const char* op, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(is_compressible(dtype), op, ": dtype must be float32, float16 or bfloat16, got ", dtype);
  return dtype == at::kFloat  ? ElementType::kFloat32
         : dtype == at::kHalf ? ElementType::kFloat16
                              : ElementType::kBFloat16;
}

void check_bits(const char* op, int64_t bits) {
  TORCH_CHECK_VALUE(bits >= kMinBits && bits <= kMaxBits, op, ": bits must be in 1..8, got ", bits);
}

void check_group_size(const char* op, int64_t group_size) {
  TORCH_CHECK_VALUE(group_size > 0 && group_size % kGroupSizeMultiple == 0, op,
                    ": group_size must be a positive multiple of ", kGroupSizeMultiple, ", got ", group_size);
}

void check_rng_state(const char* op, const std::optional<at::Tensor>& rng_state, c10::Device device) {
  if (!rng_state.has_value()) {
    return;
  }
  TORCH_CHECK_VALUE(rng_state->defined() && rng_state->scalar_type() == at::kLong && rng_state->dim() == 1 &&
                        rng_state->sym_numel() == 2 && rng_state->is_contiguous(),
                    op, ": rng_state must be a contiguous int64 tensor {seed, offset} of shape [2], got ",
                    rng_state->defined() ? rng_state->toString() : "an undefined tensor");
  TORCH_CHECK_VALUE(rng_state->device() == device, op, ": rng_state must be on the input's device ", device, ", got ",
                    rng_state->device());
}

void check_packed(const char* op, const char* argument, const at::Tensor& packed, const c10::SymInt& bytes) {
  TORCH_CHECK_VALUE(
      packed.defined() && packed.scalar_type() == at::kByte && packed.dim() == 1 && packed.is_contiguous(), op, ": ",
      argument, " must be a contiguous 1-D uint8 tensor, got ", packed.defined() ? packed.toString() : "none");
  TORCH_CHECK_VALUE(packed.sym_numel() == bytes, op, ": ", argument, " must have ", bytes,
                    " bytes for this size, bits and group_size, got ", packed.sym_numel());
}

void check_dense(const char* op, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  TORCH_CHECK_VALUE(size.size() == stride.size(), op, ": stride must have one entry per dimension of size (",
                    size.size(), "), got ", stride.size());
  std::vector<size_t> order;
  bool empty = false;
  for (size_t d = 0; d < size.size(); ++d) {
    TORCH_CHECK_VALUE(size[d] >= 0, op, ": size must not be negative, got ", size);
    empty = empty || size[d] == 0;
    if (size[d] != 1) {
      order.push_back(d);
    }
  }
  if (empty) {
    return;
  }
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return stride[a] < stride[b]; });
  c10::SymInt expected = 1;
  for (const size_t d : order) {
    TORCH_CHECK_VALUE(stride[d] == expected, op, ": stride must describe a dense tensor of size ", size, ", got ",
                      stride);
    expected = expected * size[d];
  }
}

}  // namespace actnn
