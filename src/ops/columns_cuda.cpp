#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "actnn/cuda/columns.h"
#include "src/ops/columns_checks.h"
#include "src/ops/cuda_support.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

at::Tensor quantize_columns_cuda(const at::Tensor& input, int64_t bits, int64_t group_rows, c10::string_view rounding,
                                 const std::optional<at::Tensor>& rng_state) {
  const QuantizedColumns how = check_quantize_columns(input, bits, group_rows, rounding, rng_state);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor matrix = input.contiguous();
  const ColumnLayout<int64_t> layout = with_data(how.layout);
  at::Tensor packed = empty_bytes(layout.bytes(), input);
  check_launch(cuda::quantize_columns({.elements = matrix.const_data_ptr(),
                                       .type = how.type,
                                       .layout = layout,
                                       .packed = packed.mutable_data_ptr<uint8_t>(),
                                       .random = random_source(rng_state),
                                       .rounding = how.rounding},
                                      current_stream()));
  advance_random_state(rng_state);
  return packed;
}

at::Tensor dequantize_columns_cuda(const at::Tensor& packed, int64_t rows, int64_t channels, at::ScalarType dtype,
                                   int64_t bits, int64_t group_rows, const std::optional<at::Tensor>& weight,
                                   const std::optional<at::Tensor>& bias) {
  const DequantizedColumns how =
      check_dequantize_columns(packed, rows, channels, dtype, bits, group_rows, weight, bias);
  const std::optional<at::Tensor> scale = in_float(weight);
  const std::optional<at::Tensor> shift = in_float(bias);
  const c10::cuda::CUDAGuard guard(packed.device());
  const at::Tensor bytes = aligned_bytes(packed);
  at::Tensor output = at::empty({rows, channels}, packed.options().dtype(dtype));
  check_launch(cuda::dequantize_columns({.packed = bytes.const_data_ptr<uint8_t>(),
                                         .layout = with_data(how.layout),
                                         .type = how.type,
                                         .elements = output.mutable_data_ptr(),
                                         .weight = scale ? scale->const_data_ptr<float>() : nullptr,
                                         .bias = shift ? shift->const_data_ptr<float>() : nullptr},
                                        current_stream()));
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(actnn, CUDA, m) {
  m.impl("quantize_columns", quantize_columns_cuda);
  m.impl("dequantize_columns", dequantize_columns_cuda);
}

}  // namespace actnn
