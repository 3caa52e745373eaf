#include "src/ops/linear_cross_entropy.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "src/ops/checks.h"
#include "src/ops/dispatch.h"
#include "src/ops/row_kernels.h"
#include "src/ops/rows.h"
#include "src/ops/tensors.h"

namespace actnn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Tensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

constexpr const char* kName = "actnn::linear_cross_entropy_forward";
constexpr int64_t kFewestRows = 128;
constexpr int64_t kFewestLogits = int64_t{1} << 22;  // fewer are quicker computed than launched

/// The rows whose logits are as large as the weight in float32, or more where these are few: with fewer, adding to the
/// gradient of the weight would take longer than the products. On the CPU logits are there in float32 and in a type of
/// 16 bits, with their gradients in the latter.
int64_t rows_at_a_time(const at::Tensor& input, int64_t classes) {
  const int64_t features = input.size(1);
  const int64_t alike = input.is_cuda() ? features * 4 / input.element_size() : features / 2;
  return std::max({alike, kFewestRows, kFewestLogits / std::max<int64_t>(classes, 1)});
}

/// Adds gradient^T x to the sum.
void add_weight_gradient(at::Tensor& sum, const at::Tensor& gradient, const at::Tensor& x) {
  if (x.scalar_type() == at::kFloat) {
    sum.addmm_(gradient.t(), x);
  } else if (x.is_cuda()) {
    at::addmm_out(sum, sum, gradient.t(), x, at::kFloat);
  } else if (x.scalar_type() == at::kHalf) {
    // Of gradients of about 1 and many rows, the product would be beyond float16.
    const double rows = std::exp2(std::ceil(std::log2(static_cast<double>(x.size(0)))));
    sum.add_(gradient.t().mm(x.mul(1.0 / rows)), rows);
  } else {
    sum.add_(gradient.t().mm(x));
  }
}

at::Tensor scalar(const at::Tensor& like) { return at::zeros({}, like.options().dtype(at::kFloat)); }

/// The gradients wanted, of the sizes that they have, or none, and room for the logits.
Tensors results_of(const at::Tensor& input, const at::Tensor& weight, std::array<bool, 3> wanted,
                   const c10::SymInt& classes, bool returns_logits) {
  const auto floats = input.options().dtype(at::kFloat);
  return {scalar(input),
          scalar(input),
          wanted[0] ? at::empty_like(input, at::MemoryFormat::Contiguous) : at::Tensor(),
          wanted[1] ? at::zeros_symint(weight.sym_sizes(), floats) : at::Tensor(),
          wanted[2] ? at::zeros_symint({weight.sym_size(0)}, floats) : at::Tensor(),
          returns_logits ? at::empty_symint({input.sym_size(0), classes}, input.options()) : at::Tensor()};
}

void check_targets(const at::Tensor& target, int64_t classes, int64_t ignore_index) {
  if (!target.is_cpu()) {
    return;  // the gather asserts it
  }
  const at::Tensor wrong = target.lt(0).logical_or_(target.ge(classes)).logical_and_(target.ne(ignore_index));
  if (wrong.any().item<bool>()) {
    TORCH_CHECK_INDEX(false, "actnn::linear_cross_entropy: target must be in 0..", classes - 1,
                      " or ignore_index = ", ignore_index, ", got ", target.masked_select(wrong)[0].item<int64_t>());
  }
}

void check_rows(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias, const at::Tensor& target,
                double label_smoothing, double z_loss) {
  check_linear_cross_entropy(kName, input, weight, target, bias, label_smoothing, z_loss);
  TORCH_CHECK_VALUE(input.dim() == 2, kName, ": input must have shape [rows, features], got shape ", input.sym_sizes());
}

/// By torch's operations, in float32: logits become their gradient.
at::Tensor cross_entropy_rows(at::Tensor& logits, const at::Tensor& target, const CrossEntropy& how,
                              bool writes_gradient) {
  const at::Tensor ignored = target.eq(how.ignore_index).unsqueeze(1);
  const at::Tensor label = target.unsqueeze(1).masked_fill(ignored, 0);
  logits = with_dtype(logits, at::kFloat);
  const at::Tensor log_sum = at::logsumexp(logits, {1}, /*keepdim=*/true);
  at::Tensor loss = log_sum - logits.gather(1, label) * (1.0 - how.label_smoothing);
  if (how.label_smoothing != 0.0) {
    loss.sub_(logits.mean(1, /*keepdim=*/true), how.label_smoothing);
  }
  if (how.z_loss != 0.0) {
    loss.add_(log_sum.square(), how.z_loss);
  }
  // What is ignored counts for nothing, whatever it is.
  loss.masked_fill_(ignored, 0.0);
  if (!writes_gradient) {
    return loss;
  }
  logits.sub_(log_sum).exp_();
  if (how.z_loss != 0.0) {
    logits.mul_(log_sum * (2.0 * how.z_loss) + 1.0);
  }
  if (how.label_smoothing != 0.0) {
    logits.sub_(how.label_smoothing / static_cast<double>(logits.size(1)));
  }
  logits.scatter_(1, label, logits.gather(1, label).add_(how.label_smoothing - 1.0));
  logits.masked_fill_(ignored, 0.0);
  return loss;
}

/// The classes rounded up to what tensor cores read in whole vectors.
int64_t padded_classes(const at::Tensor& weight) {
  constexpr int64_t kAlignment = 8;
  const int64_t classes = weight.size(0);
  return weight.is_cuda() ? (classes + kAlignment - 1) / kAlignment * kAlignment : classes;
}

Tensors forward(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias, const at::Tensor& target,
                std::array<bool, 3> wanted, int64_t ignore_index, double label_smoothing, double z_loss, bool mean,
                bool returns_logits) {
  check_rows(input, weight, bias, target, label_smoothing, z_loss);
  const int64_t rows = input.size(0);
  const int64_t classes = weight.size(0);
  check_targets(target, classes, ignore_index);
  const int64_t columns = padded_classes(weight);
  const at::Tensor weights = columns == classes ? weight : at::constant_pad_nd(weight, {0, 0, 0, columns - classes});
  const OptionalTensor biases =
      bias && columns != classes ? OptionalTensor(at::constant_pad_nd(*bias, {0, columns - classes})) : bias;
  auto results = results_of(input, weights, wanted, classes, returns_logits);
  auto& [loss, scale, grad_input, grad_weight, grad_bias, all_logits] = results;
  const CrossEntropy how{ignore_index, label_smoothing, z_loss};
  const bool has_gradients = wanted[0] || wanted[1] || wanted[2];
  const int64_t step = rows_at_a_time(input, classes);
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t count = std::min(step, rows - first);
    const at::Tensor x = input.narrow(0, first, count);
    at::Tensor logits = biases ? at::addmm(*biases, x, weights.t()) : x.mm(weights.t());
    const at::Tensor kept = returns_logits ? all_logits.narrow(0, first, count) : at::Tensor();
    const at::Tensor of_target = target.narrow(0, first, count);
    if (logits.is_cuda()) {
      loss.add_(cross_entropy_rows_cuda(logits, classes, of_target, how, has_gradients, kept).sum());
    } else {
      if (returns_logits) {
        kept.copy_(logits);
      }
      loss.add_(cross_entropy_rows(logits, of_target, how, has_gradients).sum());
    }
    if (!has_gradients) {
      continue;
    }
    const at::Tensor gradient = with_dtype(logits, input.scalar_type());
    logits.reset();
    if (wanted[2]) {
      grad_bias.add_(gradient.is_cuda() ? sum_rows(gradient) : gradient.sum(0, /*keepdim=*/false, at::kFloat));
    }
    if (wanted[0]) {
      at::Tensor of_input = grad_input.narrow(0, first, count);
      at::mm_out(of_input, gradient, weights);
    }
    if (wanted[1]) {
      add_weight_gradient(grad_weight, gradient, x);
    }
  }
  if (wanted[1]) {
    // What is kept until backward; in float16 the sum of many rows might be infinite.
    grad_weight = with_dtype(grad_weight.narrow(0, 0, classes),
                             weight.scalar_type() == at::kBFloat16 ? at::kBFloat16 : at::kFloat);
  }
  if (wanted[2]) {
    grad_bias = grad_bias.narrow(0, 0, classes);
  }
  if (mean) {
    // Of no rows the mean is NaN, and its gradient 0, as torch has it.
    const at::Tensor counted = target.ne(ignore_index).sum().to(at::kFloat);
    loss.div_(counted);
    scale = counted.clamp_min(1.0).reciprocal_();
  } else {
    scale.fill_(1.0);
  }
  return results;
}

Tensors forward_meta(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                     const at::Tensor& target, std::array<bool, 3> wanted, int64_t /*ignore_index*/,
                     double label_smoothing, double z_loss, bool /*mean*/, bool returns_logits) {
  check_rows(input, weight, bias, target, label_smoothing, z_loss);
  auto results = results_of(input, weight, wanted, weight.sym_size(0), returns_logits);
  if (wanted[1] && weight.scalar_type() == at::kBFloat16) {
    std::get<3>(results) = std::get<3>(results).to(at::kBFloat16);
  }
  return results;
}

}  // namespace

void check_linear_cross_entropy(const char* op, const at::Tensor& input, const at::Tensor& weight,
                                const at::Tensor& target, const OptionalTensor& bias, double label_smoothing,
                                double z_loss) {
  check_floating(op, "input", input);
  check_floating(op, "weight", weight);
  TORCH_CHECK_VALUE(weight.dim() == 2, op, ": weight must have shape [classes, features], got shape ",
                    weight.sym_sizes());
  TORCH_CHECK_VALUE(input.dim() >= 1 && input.sym_size(-1) == weight.sym_size(1), op,
                    ": input must have features = ", weight.sym_size(1), " as its last dimension, got shape ",
                    input.sym_sizes());
  TORCH_CHECK_VALUE(input.scalar_type() == weight.scalar_type(), op,
                    ": input and weight must have the same dtype, got ", input.scalar_type(), " and ",
                    weight.scalar_type());
  TORCH_CHECK_TYPE(target.scalar_type() == at::kLong, op, ": target must be int64, got ", target.scalar_type());
  TORCH_CHECK_VALUE(target.sym_sizes() == input.sym_sizes().slice(0, static_cast<size_t>(input.dim()) - 1), op,
                    ": target must have the input's shape without its last dimension, got shapes ", target.sym_sizes(),
                    " and ", input.sym_sizes());
  TORCH_CHECK_VALUE(target.device() == input.device() && weight.device() == input.device(), op,
                    ": input, weight and target must be on one device, got ", input.device(), ", ", weight.device(),
                    " and ", target.device());
  if (bias) {
    check_floating(op, "bias", *bias);
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->sym_size(0) == weight.sym_size(0), op,
                      ": bias must have shape [classes] = [", weight.sym_size(0), "], got shape ", bias->sym_sizes());
    TORCH_CHECK_VALUE(bias->scalar_type() == weight.scalar_type() && bias->device() == weight.device(), op,
                      ": bias must have the weight's dtype and device, got ", bias->scalar_type(), " on ",
                      bias->device(), " for ", weight.scalar_type(), " on ", weight.device());
  }
  TORCH_CHECK_VALUE(label_smoothing >= 0.0 && label_smoothing <= 1.0, op, ": label_smoothing must be in [0, 1], got ",
                    label_smoothing);
  TORCH_CHECK_VALUE(z_loss >= 0.0, op, ": z_loss must be 0 or more, got ", z_loss);
}

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "linear_cross_entropy_forward(Tensor input, Tensor weight, Tensor? bias, Tensor target, bool[3] wanted, "
      "int ignore_index, float label_smoothing, float z_loss, bool mean, bool returns_logits) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(actnn, CPU, m) { m.impl("linear_cross_entropy_forward", forward); }
TORCH_LIBRARY_IMPL(actnn, CUDA, m) { m.impl("linear_cross_entropy_forward", forward); }
TORCH_LIBRARY_IMPL(actnn, Meta, m) { m.impl("linear_cross_entropy_forward", forward_meta); }

LinearCrossEntropy linear_cross_entropy_forward(const at::Tensor& input, const at::Tensor& weight,
                                                const OptionalTensor& bias, const at::Tensor& target,
                                                std::array<bool, 3> wanted, int64_t ignore_index,
                                                double label_smoothing, double z_loss, bool mean, bool returns_logits) {
  static const auto kHandle = find_op<decltype(forward)>(kName);
  auto [loss, scale, grad_input, grad_weight, grad_bias, logits] =
      kHandle.call(input, weight, bias, target, wanted, ignore_index, label_smoothing, z_loss, mean, returns_logits);
  return {loss, scale, grad_input, grad_weight, grad_bias, logits};
}

}  // namespace actnn
