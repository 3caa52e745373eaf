#include "src/blocks/steps/attention.h"

#include <ATen/ops/mean.h>
#include <ATen/ops/nan_to_num.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

constexpr size_t kMask = 3;  // the place among the inputs

/// `tensor_of(place)`: an input.
template <class TensorOf>
AttentionArguments attention_arguments(const Attention& step, at::ScalarType dtype, bool mask_trains,
                                       const TensorOf& tensor_of) {
  // Kernels read heads in one piece; values with channels innermost have them in others.
  const auto heads = [&](size_t place) {
    const at::Tensor tensor = with_dtype(tensor_of(place), dtype);
    return tensor.sym_stride(-1) == 1 ? tensor : tensor.contiguous();
  };
  AttentionArguments arguments{.query = heads(0),
                               .key = heads(1),
                               .value = heads(2),
                               .probability = step.probability,
                               .causal = step.causal,
                               .scale = step.scale,
                               .grouped = step.grouped};
  if (step.inputs.size() > kMask) {
    const at::Tensor mask = tensor_of(kMask);
    if (step.mask_repeats) {
      const at::Tensor& query = arguments.query;
      TORCH_CHECK_VALUE(query.dim() == 4 && mask.dim() == 4 && query.sym_size(0) % mask.sym_size(0) == 0,
                        "block: attention must have as many samples as its mask that repeats, or a multiple, all of "
                        "four dimensions, got shapes ",
                        query.sym_sizes(), " and ", mask.sym_sizes());
    }
    arguments.mask = mask.scalar_type() == at::kBool ? mask : with_dtype(mask, dtype);
    arguments.mask_repeats = step.mask_repeats;
    arguments.mask_trains = mask_trains;
  }
  return arguments;
}

/// Keys less their mean, on which weights do not depend: what a gradient of scores has too much or too little in a row
/// goes to the query's gradient times the mean. Where an element is none there is no mean of its channel.
at::Tensor without_mean(const at::Tensor& key) {
  const at::Tensor mean = at::mean(key, {-2}, /*keepdim=*/true, at::kFloat);
  return key.sub(at::nan_to_num(mean, 0.0, 0.0, 0.0).to(key.scalar_type()));
}

/// Dimensions before the length, with as many heads as the query has where heads are grouped.
Sizes leading_sizes(const Sizes& sizes, const Sizes& query, bool grouped) {
  Sizes leading(sizes.begin(), sizes.end() - 2);
  if (grouped && !leading.empty()) {
    leading.back() = query[query.size() - 3];
  }
  return leading;
}

}  // namespace

void Attention::visit_fields(FieldVisitor& fields) {
  fields.optional("probability", probability);
  fields.optional("causal", causal);
  fields.optional("scale", scale);
  fields.optional("grouped", grouped);
  fields.optional("mask_repeats", mask_repeats);
}

void Attention::check() const {
  TORCH_CHECK_VALUE(inputs.size() == kMask || inputs.size() == kMask + 1,
                    "block: attention must have query, key, value and perhaps a mask as inputs, got ", inputs.size());
  TORCH_CHECK_VALUE(probability >= 0.0 && probability < 1.0,
                    "block: attention must have a probability of dropout in [0, 1), got ", probability);
  TORCH_CHECK_VALUE(!causal || !has_mask(), "block: attention must have a mask or be causal, got both");
  TORCH_CHECK_VALUE(!mask_repeats || has_mask(), "block: attention must have a mask that repeats, got none");
}

std::vector<Sizes> Attention::infer_sizes(const KnownSizes& known) const {
  const Sizes& query = known.sizes(inputs[0]);
  const Sizes& key = known.sizes(inputs[1]);
  const Sizes& value = known.sizes(inputs[2]);
  const size_t least = grouped ? 3 : 2;
  TORCH_CHECK_VALUE(query.size() >= least && key.size() >= least && value.size() >= least,
                    "block: attention must have inputs of ", least, " dimensions or more, got ", query.size(), ", ",
                    key.size(), " and ", value.size());
  Sizes result = broadcast(broadcast(leading_sizes(query, query, grouped), leading_sizes(key, query, grouped)),
                           leading_sizes(value, query, grouped));
  result.push_back(query[query.size() - 2]);
  result.push_back(value.back());
  return {result};
}

std::vector<Need> Attention::needs(const Wants& wants) const {
  if (std::none_of(inputs.begin(), inputs.end(), [&](Value input) { return wants.wants(input); })) {
    return {};
  }
  std::vector<Need> needs;
  for (size_t place = 0; place < inputs.size(); ++place) {
    const Value input = inputs[place];
    if (std::none_of(needs.begin(), needs.end(), [&](const Need& need) { return need.value == input; })) {
      needs.push_back({.value = input, .form = saved_form(place), .bits = copy_bits});
    }
  }
  if (copy_bits == 0) {
    needs.push_back({output(), Form::kExact});
    needs.push_back({output(), Form::kStatistics});
  }
  if (probability > 0.0) {
    if (copy_bits != 0) {
      needs.push_back({output(), Form::kCopy});
    }
    needs.push_back({output(), Form::kRandomState, AttentionRandomState::kTensors});
  }
  return needs;
}

bool Attention::wants_mask(const Wants& wants) const { return has_mask() && wants.wants(inputs[kMask]); }

/// A mask is saved as it is.
Form Attention::saved_form(size_t place) const { return copy_bits == 0 || place >= kMask ? Form::kExact : Form::kCopy; }

std::vector<at::Tensor> Attention::compute(Operands& operands) const {
  const AttentionArguments arguments = attention_arguments(*this, operands.dtype(output()), /*mask_trains=*/false,
                                                           [&](size_t place) { return operands.value(inputs[place]); });
  return {attention_forward(arguments, /*trains=*/false).output};
}

void Attention::forward(ForwardRun& run) const {
  const AttentionArguments arguments = attention_arguments(*this, run.dtype(output()), wants_mask(run),
                                                           [&](size_t place) { return run.value(inputs[place]); });
  const bool trains = run.wants(output());
  AttentionResult result = attention_forward(arguments, trains);
  result.output = in_layout(result.output, run.layout(output()));
  if (trains) {
    for (size_t place = 0; place < inputs.size(); ++place) {
      if (saved_form(place) == Form::kExact) {
        run.save(inputs[place], Form::kExact, {run.value(inputs[place])});
      }
    }
    if (copy_bits == 0) {
      run.save(output(), Form::kExact, {result.output});
      run.save(output(), Form::kStatistics, {std::move(result.log_sum_exp)});
    }
    if (probability > 0.0) {
      run.save(output(), Form::kRandomState, std::move(result.random_state).tensors());
    }
  }
  run.set(output(), std::move(result.output));
}

void Attention::backward(BackwardRun& run) const {
  const at::ScalarType dtype = run.dtype(output());
  const at::Tensor grad = with_dtype(run.take_joined(output()), dtype);
  const AttentionWants wanted{run.wants(inputs[0]), run.wants(inputs[1]), run.wants(inputs[2]), wants_mask(run)};
  if (std::none_of(wanted.begin(), wanted.end(), [](bool one) { return one; })) {
    return;
  }
  const auto saved = [&](Value value, Form form) {
    return form == Form::kCopy ? run.copy(value) : run.saved(value, Form::kExact)[0];
  };
  AttentionArguments arguments = attention_arguments(
      *this, dtype, wanted[kMask], [&](size_t place) { return saved(inputs[place], saved_form(place)); });
  const AttentionResult result = copy_bits == 0 ? saved_result(run) : result_of_copies(run, arguments);
  AttentionGradients gradients = attention_backward(arguments, result, grad, wanted);
  for (size_t place = 0; place < gradients.size(); ++place) {
    if (wanted[place]) {
      const at::Tensor gradient = sum_to(std::exchange(gradients[place], {}), run.sizes(inputs[place]));
      run.add(inputs[place], with_dtype(gradient, run.dtype(inputs[place])));
    }
  }
}

AttentionResult Attention::saved_result(BackwardRun& run) const {
  return {.output = with_dtype(run.saved(output(), Form::kExact)[0], run.dtype(output())),
          .log_sum_exp = run.saved(output(), Form::kStatistics)[0],
          .random_state = random_state(run)};
}

AttentionResult Attention::result_of_copies(BackwardRun& run, AttentionArguments& arguments) const {
  if (probability == 0.0) {
    return attention_forward(arguments, /*trains=*/true);
  }
  arguments.key = without_mean(arguments.key);
  AttentionArguments undropped = arguments;
  undropped.probability = 0.0;
  return {.output = with_dtype(run.copy(output()), run.dtype(output())),
          .log_sum_exp = attention_forward(undropped, /*trains=*/true).log_sum_exp,
          .random_state = random_state(run)};
}

AttentionRandomState Attention::random_state(BackwardRun& run) const {
  return probability > 0.0 ? AttentionRandomState::from(run.saved(output(), Form::kRandomState))
                           : AttentionRandomState{};
}

namespace {
const RegisterStep<Attention> kAttentionStep;
}

}  // namespace actnn::blocks
