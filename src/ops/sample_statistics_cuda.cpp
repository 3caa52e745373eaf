#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "actnn/cuda/sample_statistics.h"
#include "src/ops/cuda_support.h"
#include "src/ops/sample_statistics_checks.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

/// The group size that `square_norms` asks scratch for.
constexpr int64_t kSquaresGroup = 1024;

cuda::Samples samples_of(const at::Tensor& dense, ElementType type) {
  const int64_t samples = dense.size(0);
  return {.elements = dense.const_data_ptr(),
          .type = type,
          .samples = samples,
          .count = samples == 0 ? 0 : dense.numel() / samples};
}

at::Tensor scratch_for(const cuda::Samples& samples, int64_t group_size, const at::Tensor& like) {
  return at::empty({cuda::statistics_scratch(samples, group_size)}, like.options().dtype(at::kDouble));
}

at::Tensor ranges_cuda(const at::Tensor& input, int64_t group_size) {
  const ElementType type = check_group_range_squares(input, group_size);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor dense = samples_outermost(input);
  const cuda::Samples samples = samples_of(dense, type);
  at::Tensor sums = one_per_sample(input);
  const at::Tensor scratch = scratch_for(samples, group_size, sums);
  check_launch(cuda::group_range_squares(samples, group_size, scratch.mutable_data_ptr<double>(),
                                         sums.mutable_data_ptr<float>(), current_stream()));
  return sums;
}

at::Tensor squares_cuda(const at::Tensor& input) {
  const ElementType type = check_square_norms(input);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor dense = samples_outermost(input);
  const cuda::Samples samples = samples_of(dense, type);
  at::Tensor sums = one_per_sample(input);
  const at::Tensor scratch = scratch_for(samples, kSquaresGroup, sums);
  check_launch(cuda::square_norms(samples, scratch.mutable_data_ptr<double>(), sums.mutable_data_ptr<float>(),
                                  current_stream()));
  return sums;
}

}  // namespace

TORCH_LIBRARY_IMPL(actnn, CUDA, m) {
  m.impl("group_range_squares", ranges_cuda);
  m.impl("square_norms", squares_cuda);
}

}  // namespace actnn
