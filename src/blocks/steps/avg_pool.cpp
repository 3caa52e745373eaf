#include "src/blocks/steps/avg_pool.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "src/autograd/avg_pool.h"
#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/blocks/steps/like_value.h"
#include "src/blocks/steps/planes.h"
#include "src/blocks/steps/windows.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {

void AvgPool::visit_fields(FieldVisitor& fields) {
  fields.required("kernel_size", kernel_size);
  fields.required("stride", stride);
  fields.required("padding", padding);
  fields.optional("ceil_mode", ceil_mode);
  fields.optional("count_include_pad", count_include_pad);
  fields.optional("divisor_override", divisor_override);
}

void AvgPool::check() const {
  check_inputs(*this, 1);
  check_spatial_lists(*this, {{"kernel_size", kernel_size, 1}, {"stride", stride, 1}, {"padding", padding, 0}});
  TORCH_CHECK_VALUE(divisor_override.value_or(1) != 0, "block: avg_pool must have a divisor_override other than 0");
}

AvgPoolGeometry AvgPool::geometry() const {
  return {.kernel_size = plane_list(kernel_size, 1),
          .stride = plane_list(stride, 1),
          .padding = plane_list(padding, 0),
          .ceil_mode = ceil_mode,
          .count_include_pad = count_include_pad,
          .divisor_override = divisor_override};
}

std::vector<Sizes> AvgPool::infer_sizes(const KnownSizes& known) const {
  Sizes size = known.sizes(inputs[0]);
  check_spatial_size(*this, size, kernel_size.size());
  for (size_t d = 0; d < kernel_size.size(); ++d) {
    size[d + 2] = count_windows(*this, size[d + 2], {kernel_size[d], stride[d], padding[d], 1, ceil_mode});
  }
  return {size};
}

std::vector<at::Tensor> AvgPool::compute(Operands& operands) const {
  const at::Tensor input = with_dtype(operands.value(inputs[0]), operands.dtype(output()));
  return {from_planes(exact_avg_pool(as_planes(input), geometry()), kernel_size.size())};
}

void AvgPool::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  if (run.wants(inputs[0])) {
    const at::Tensor input = empty_like_value(run, inputs[0], grad);
    run.add(inputs[0],
            from_planes(avg_pool_gradient(as_planes(grad), as_planes(input), geometry()), kernel_size.size()));
  }
}

void AdaptiveAvgPool::check() const {
  check_inputs(*this, 1);
  check_spatial_lists(*this, {{"output_size", output_size, 1}});
}

std::vector<Sizes> AdaptiveAvgPool::infer_sizes(const KnownSizes& known) const {
  Sizes size = known.sizes(inputs[0]);
  check_spatial_size(*this, size, output_size.size());
  std::copy(output_size.begin(), output_size.end(), size.begin() + 2);
  return {size};
}

std::vector<at::Tensor> AdaptiveAvgPool::compute(Operands& operands) const {
  const at::Tensor input = with_dtype(operands.value(inputs[0]), operands.dtype(output()));
  return {from_planes(exact_adaptive_avg_pool(as_planes(input), plane_list(output_size, 1)), output_size.size())};
}

void AdaptiveAvgPool::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  if (!run.wants(inputs[0])) {
    return;
  }
  if (is_global_pool(output_size)) {
    const Sizes& size = run.sizes(inputs[0]);
    const c10::SymInt count = element_count(Sizes(size.begin() + 2, size.end()));
    run.add(inputs[0], spread_to_value(run, inputs[0], grad.div(c10::Scalar(count))));
    return;
  }
  const at::Tensor input = empty_like_value(run, inputs[0], grad);
  const size_t dimensions = plane_list(output_size, 1).size();
  run.add(inputs[0],
          from_planes(adaptive_avg_pool_gradient(as_planes(grad), as_planes(input), dimensions), output_size.size()));
}

namespace {
const RegisterStep<AvgPool> kAvgPoolStep;
const RegisterStep<AdaptiveAvgPool> kAdaptiveAvgPoolStep;
}  // namespace

}  // namespace actnn::blocks
