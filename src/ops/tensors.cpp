#include "src/ops/tensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include "actnn/ops/random.h"

namespace actnn {

at::Tensor empty_bytes(const c10::SymInt& bytes, const at::Tensor& like) {
  return at::empty_symint({bytes}, like.options().dtype(at::kByte).memory_format(at::MemoryFormat::Contiguous));
}

at::Tensor storage_order(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous();
}

at::Tensor samples_outermost(const at::Tensor& input) {
  const bool outermost =
      input.is_non_overlapping_and_dense() && (input.sym_numel() == 0 || input.sym_size(0) == 1 ||
                                               input.sym_stride(0) * input.sym_size(0) == input.sym_numel());
  return outermost ? input : input.contiguous();
}

bool is_traced(const at::Tensor& tensor) {
  return c10::impl::TorchDispatchModeTLS::any_modes_set() ||
         tensor.key_set().has_any(c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::Functionalize}));
}

at::Tensor on_device(const at::Tensor& tensor, c10::Device device) {
  return tensor.to(device, /*non_blocking=*/!device.is_cpu());
}

at::Tensor with_strides(const at::Tensor& tensor, c10::SymIntArrayRef stride) {
  const auto size = tensor.sym_sizes();
  const auto have = tensor.sym_strides();
  bool same = true;
  for (size_t d = 0; d < size.size(); ++d) {
    same = same && (have[d] == stride[d] || size[d] == 1);
  }
  return same || tensor.sym_numel() == 0 ? tensor
                                         : at::empty_strided_symint(size, stride, tensor.options()).copy_(tensor);
}

RandomState read_random_state(const at::Tensor& rng_state) {
  const int64_t* state = rng_state.const_data_ptr<int64_t>();
  return {static_cast<uint64_t>(state[0]), static_cast<uint64_t>(state[1])};
}

RandomState take_random_state(const std::optional<at::Tensor>& rng_state) {
  if (!rng_state.has_value()) {
    return read_random_state(default_rng_state(at::kCPU));
  }
  const RandomState state = read_random_state(*rng_state);
  rng_state->mutable_data_ptr<int64_t>()[1] = static_cast<int64_t>(state.offset + 1);
  return state;
}

}  // namespace actnn
