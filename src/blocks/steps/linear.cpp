#include "src/blocks/steps/linear.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/linear.h>
#include <c10/util/Exception.h>

#include <optional>
#include <utility>

#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/ops/rows.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

/// All dimensions but the last as one.
at::Tensor rows_of(const at::Tensor& tensor) { return tensor.dim() == 1 ? tensor.unsqueeze(0) : tensor.flatten(0, -2); }

/// In the memory layout of the weight, which may be transposed: autograd would copy any other.
at::Tensor weight_gradient(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight) {
  const bool is_transposed = weight.sym_stride(0) == 1 && weight.sym_stride(1) == weight.sym_size(0);
  return is_transposed ? input.t().mm(grad).t() : grad.t().mm(input);
}

}  // namespace

void Linear::visit_fields(FieldVisitor& fields) {
  fields.required("weight", weight);
  fields.optional("bias", bias);
}

void Linear::check() const { check_inputs(*this, 1); }

std::vector<Sizes> Linear::infer_sizes(const KnownSizes& known) const {
  Sizes size = known.sizes(inputs[0]);
  const c10::SymIntArrayRef weights = known.sizes(weight);
  TORCH_CHECK_VALUE(weights.size() == 2, "block: linear must have a weight [out, in], got shape ", weights);
  TORCH_CHECK_VALUE(!size.empty() && size.back() == weights[1],
                    "block: linear must have an input whose last dimension is ", weights[1], ", got shape ",
                    c10::SymIntArrayRef(size));
  size.back() = weights[0];
  return {size};
}

std::vector<ParameterIndex> Linear::cast_parameters() const {
  return bias ? std::vector{weight, *bias} : std::vector{weight};
}

std::vector<Need> Linear::needs(const Wants& wants) const {
  return wants.wants(weight) ? std::vector<Need>{{inputs[0], Form::kCopy}} : std::vector<Need>{};
}

std::vector<at::Tensor> Linear::compute(Operands& operands) const {
  const at::Tensor input = operands.value(inputs[0], operands.dtype(output()));
  return {at::linear(input, operands.parameter(weight), operands.parameter(bias))};
}

void Linear::backward(BackwardRun& run) const {
  const at::ScalarType dtype = run.dtype(output());
  Gradient gradient = run.take(output());
  gradient.join();
  const at::Tensor grad = rows_of(with_dtype(gradient.first, dtype));
  if (run.wants(weight)) {
    run.with_copy(inputs[0], dtype, [&run, grad, index = weight](const at::Tensor& input) {
      run.add(index, weight_gradient(grad, rows_of(input), run.parameter(index)));
    });
  }
  if (run.wants(bias)) {
    if (gradient.sums.defined()) {
      run.add(*bias, std::move(gradient.sums));
    } else {
      run.add_sum_of_rows(*bias, grad);
    }
  }
  if (!run.wants(inputs[0])) {
    return;
  }
  // Several linear layers of one input add their gradients up in the products.
  if (std::optional<at::Tensor> sum = run.take_owned(inputs[0], dtype); sum && sum->is_contiguous()) {
    sum->view_symint({-1, sum->sym_size(-1)}).addmm_(grad, run.parameter(weight));
    run.add(inputs[0], std::move(*sum));
  } else {
    if (sum) {
      run.add(inputs[0], std::move(*sum));
    }
    run.add(inputs[0], grad.mm(run.parameter(weight)).reshape_symint(run.sizes(inputs[0])));
  }
}

namespace {
const RegisterStep<Linear> kLinearStep;
}

}  // namespace actnn::blocks
