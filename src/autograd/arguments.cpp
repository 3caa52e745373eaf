#include "src/autograd/arguments.h"

#include "src/ops/checks.h"
#include "src/ops/rounding_names.h"

namespace actnn {

Quantization check_quantization(const char* op, const at::Tensor& input, int64_t bits, int64_t group_size,
                                c10::string_view rounding, const std::optional<at::Tensor>& rng_state) {
  check_bits(op, bits);
  check_group_size(op, group_size);
  check_rng_state(op, rng_state, input.device());
  return {.bits = bits, .group_size = group_size, .rounding = rounding_of(op, rounding)};
}

void check_parameter(const char* op, const char* argument, const std::optional<at::Tensor>& parameter,
                     const char* names, c10::SymIntArrayRef size, const at::Tensor& input) {
  if (!parameter.has_value() || !parameter->defined()) {
    return;
  }
  check_floating(op, argument, *parameter);
  TORCH_CHECK_VALUE(parameter->sym_sizes() == size, op, ": ", argument, " must have shape ", names, " = ", size,
                    ", got shape ", parameter->sym_sizes());
  TORCH_CHECK_VALUE(parameter->device() == input.device(), op, ": ", argument, " must be on the input's device ",
                    input.device(), ", got ", parameter->device());
}

}  // namespace actnn
