#include "src/blocks/steps/attention_math.h"

#include <ATen/ops/_safe_softmax.h>
#include <ATen/ops/_softmax_backward_data.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <c10/core/SymFloat.h>

#include <cmath>
#include <utility>

#include "actnn/ops/dropout.h"
#include "src/blocks/steps/attention_groups.h"
#include "src/blocks/steps/attention_masks.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

/// Query and key are each multiplied by the root of the scale, as torch does, so that no product overflows. A negative
/// scale's sign goes to the query.
struct RootOfScale {
  c10::SymFloat query;
  c10::SymFloat key;

  explicit RootOfScale(const AttentionArguments& arguments) : query(1.0), key(1.0) {
    const c10::SymFloat scale = arguments.scale
                                    ? c10::SymFloat(std::abs(*arguments.scale))
                                    : c10::SymFloat(1.0) / c10::SymFloat(arguments.query.sym_size(-1)).sqrt();
    key = scale.sqrt();
    query = arguments.scale && *arguments.scale < 0.0 ? c10::SymFloat(0.0) - key : key;
  }
};

/// Key or value in float32, with a head for each of the query's.
at::Tensor expand_heads(const at::Tensor& tensor, const AttentionArguments& arguments) {
  const at::Tensor exact = with_dtype(tensor, at::kFloat);
  return arguments.grouped ? expand_groups(exact, arguments.query) : exact;
}

/// The other way for its gradient.
at::Tensor sum_heads(const at::Tensor& grad, const at::Tensor& like, const AttentionArguments& arguments) {
  return arguments.grouped ? sum_groups(grad, like) : grad;
}

/// Scaled and masked, float32; a new tensor.
at::Tensor scores_of(const AttentionArguments& arguments, const at::Tensor& key, const RootOfScale& root) {
  at::Tensor scores = at::matmul(with_dtype(arguments.query, at::kFloat).mul(c10::Scalar(root.query)),
                                 key.transpose(-2, -1).mul(c10::Scalar(root.key)));
  if (arguments.causal) {
    const at::Tensor seen =
        at::ones_symint({scores.sym_size(-2), scores.sym_size(-1)}, scores.options().dtype(at::kBool));
    scores.masked_fill_(seen.tril().logical_not_(), -kInfinity);
  } else if (const std::optional<at::Tensor> mask = repeated_mask(arguments)) {
    mask->scalar_type() == at::kBool ? scores.masked_fill_(mask->logical_not(), -kInfinity) : scores.add_(*mask);
  }
  return scores.contiguous();
}

/// exp(score - log_sum_exp); 0 in rows that see nothing, whose number is +infinity.
at::Tensor log_sum_exp_of(const at::Tensor& scores) {
  at::Tensor result = at::logsumexp(scores, -1);
  return result.masked_fill_(result.eq(-kInfinity), kInfinity);
}

}  // namespace

AttentionResult math_attention_forward(const AttentionArguments& arguments, bool trains) {
  const at::Tensor scores = scores_of(arguments, expand_heads(arguments.key, arguments), RootOfScale(arguments));
  AttentionResult result;
  if (trains) {
    result.log_sum_exp = log_sum_exp_of(scores);
  }
  at::Tensor weights = at::_safe_softmax(scores, -1).contiguous();
  if (arguments.probability > 0.0) {
    at::Tensor state;
    std::tie(weights, state) = dropout_forward(weights, arguments.probability);
    result.random_state.seed = state.select(0, 0).clone();
    result.random_state.offset = state.select(0, 1).clone();
  }
  result.output =
      with_dtype(at::matmul(weights, expand_heads(arguments.value, arguments)), arguments.query.scalar_type());
  return result;
}

AttentionGradients math_attention_backward(const AttentionArguments& arguments, const AttentionResult& result,
                                           const at::Tensor& grad, const AttentionWants& wanted) {
  const auto [wants_query, wants_key, wants_value, wants_mask] = wanted;
  const RootOfScale root(arguments);
  const at::Tensor exact_grad = with_dtype(grad, at::kFloat);
  const at::Tensor key = expand_heads(arguments.key, arguments);
  // Not of the saved logarithms: that of a row of lowest numbers, as masks have them, is none of its length.
  const at::Tensor weights = at::_safe_softmax(scores_of(arguments, key, root), -1).contiguous();
  const bool drops = arguments.probability > 0.0;
  const at::Tensor state = drops ? at::stack({result.random_state.seed, result.random_state.offset}) : at::Tensor();
  const auto dropped = [&](const at::Tensor& tensor) {
    return drops ? apply_dropout(tensor, arguments.probability, state, weights.sym_strides()) : tensor;
  };

  AttentionGradients gradients;
  if (wants_value) {
    gradients[2] = sum_heads(at::matmul(dropped(weights).transpose(-2, -1), exact_grad), arguments.value, arguments);
  }
  if (wants_query || wants_key || wants_mask) {
    const at::Tensor grad_weights =
        dropped(at::matmul(exact_grad, expand_heads(arguments.value, arguments).transpose(-2, -1)));
    const at::Tensor grad_scores = at::_softmax_backward_data(grad_weights, weights, -1, at::kFloat);
    const c10::Scalar scale(root.query * root.key);
    if (wants_key) {
      const at::Tensor query = with_dtype(arguments.query, at::kFloat);
      gradients[1] = sum_heads(at::matmul(grad_scores.transpose(-2, -1), query), arguments.key, arguments).mul_(scale);
    }
    if (wants_query) {
      gradients[0] = at::matmul(grad_scores, key).mul_(scale);
    }
    if (wants_mask) {
      gradients[3] = grad_scores;
    }
  }
  return gradients;
}

}  // namespace actnn::blocks
