#include "actnn/blocks/block.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_copy.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <set>
#include <tuple>
#include <utility>

#include "src/autograd/saved_activation.h"
#include "src/blocks/batched_gradients.h"
#include "src/blocks/measured_run.h"
#include "src/blocks/program_ops.h"
#include "src/blocks/run_checks.h"
#include "src/blocks/run_prepared.h"
#include "src/blocks/steps/convolution.h"
#include "src/ops/checks.h"
#include "src/ops/shared_copy.h"
#include "src/ops/stream_capture.h"
#include "src/ops/tensors.h"
#include "src/ops/torch_version.h"

namespace actnn::blocks {
namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

constexpr const char* kBlockName = "block";

/// Tensors that wait for backward, as hooks may have packed them.
class SavedTensors {
 public:
  SavedTensors() = default;
  explicit SavedTensors(const std::vector<at::Tensor>& tensors) {
    for (const at::Tensor& tensor : tensors) {
      variables_.emplace_back(tensor, /*is_output=*/false);
    }
  }

  std::vector<at::Tensor> unpack() const {
    std::vector<at::Tensor> tensors;
    std::transform(variables_.begin(), variables_.end(), std::back_inserter(tensors),
                   [](const SavedVariable& variable) { return variable.unpack(); });
    return tensors;
  }

  void release() {
    for (SavedVariable& variable : variables_) {
      variable.reset_data();
    }
  }

 private:
  std::vector<SavedVariable> variables_;
};

/// What backward is given besides tensors.
struct RunRecord {
  std::shared_ptr<const PreparedPlan> prepared;
  std::shared_ptr<const Schedule> schedule;
  std::vector<bool> wanted;
  bool exports;
  bool is_traced;
  at::ScalarType dtype;
  std::vector<c10::SymInt> integers;
  std::vector<Sizes> sizes;
  std::vector<at::ScalarType> input_dtypes;
  std::shared_ptr<MeasuredRun> measured;  ///< null unless its noise is measured
  size_t measured_as = 0;                 ///< its number then
};

class BlockBackward : public torch::autograd::Node {
 public:
  BlockBackward(torch::autograd::edge_list&& edges, RunRecord run, const std::vector<at::Tensor>& saved,
                const std::vector<at::Tensor>& copies, const std::vector<at::Tensor>& parameters)
      : Node(std::move(edges)), run_(std::move(run)), saved_(saved), copies_(copies), parameters_(parameters) {}

  std::string name() const override { return "ActnnBlockBackward"; }
  const RunRecord& run() const { return run_; }

  variable_list apply(variable_list&& grads) override {
    refuse_double_backward(kBlockName);
    const std::lock_guard lock(mutex_);
    TORCH_CHECK(!released_, torch::autograd::ERR_BACKWARD_TWICE);
    if (std::none_of(grads.begin(), grads.end(), [](const at::Tensor& grad) { return grad.defined(); })) {
      return variable_list(run_.wanted.size());
    }
    // Outside of the guards below: hooks that unpack may run forward again.
    const BackwardArguments arguments = unpacked();
    std::vector<bool> wanted;
    for (size_t gradient = 0; gradient < run_.wanted.size(); ++gradient) {
      wanted.push_back(run_.wanted[gradient] && task_should_compute_output(gradient));
    }
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const at::AutoDispatchBelowADInplaceOrView guard;
    if (are_batched(grads)) {
      const std::vector<at::Tensor> batches = std::move(grads);
      return for_each_of_batch(
          batches, [&](std::vector<at::Tensor> of_entry) { return gradients(arguments, std::move(of_entry), wanted); });
    }
    return gradients(arguments, std::move(grads), wanted);
  }

  void release_variables() override {
    const std::lock_guard lock(mutex_);
    released_ = true;
    saved_.release();
    copies_.release();
    parameters_.release();
  }

 private:
  BackwardArguments unpacked() const {
    BackwardArguments arguments;
    arguments.parameters = parameters_.unpack();
    arguments.integers = run_.integers;
    arguments.copies = copies_.unpack();
    arguments.dtype = run_.dtype;
    arguments.sizes = run_.sizes;
    arguments.saved = saved_.unpack();
    return arguments;
  }

  variable_list gradients(BackwardArguments arguments, variable_list grads, const std::vector<bool>& wanted) const {
    arguments.grads = std::move(grads);
    if (run_.is_traced) {
      return traced_backward(*run_.prepared, arguments, run_.wanted, run_.exports, wanted, run_.input_dtypes);
    }
    if (run_.measured) {
      return measured_backward(*run_.measured, *run_.prepared, *run_.schedule, arguments, wanted, run_.input_dtypes);
    }
    return run_backward(run_.prepared->plan, *run_.schedule, std::move(arguments), wanted, run_.input_dtypes);
  }

  RunRecord run_;
  SavedTensors saved_;
  SavedTensors copies_;
  SavedTensors parameters_;
  bool released_ = false;
};

bool is_channels_last(const at::Tensor& tensor) {
  if (tensor.dim() != 4 && tensor.dim() != 5) {
    return false;
  }
  if (is_traced(tensor)) {  // its strides may be symbols
    const auto format = tensor.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d;
    return tensor.is_contiguous(format) && !tensor.is_contiguous();
  }
  const at::MemoryFormat format = tensor.suggest_memory_format();
  return format == at::MemoryFormat::ChannelsLast || format == at::MemoryFormat::ChannelsLast3d;
}

/// Whether results are channels_last, as torch's layers would give them: if an input or a convolution's weight is.
bool gives_channels_last(const Program& program, const std::vector<at::Tensor>& inputs,
                         const std::vector<at::Tensor>& parameters) {
  return std::any_of(inputs.begin(), inputs.end(), is_channels_last) ||
         std::any_of(program.steps.begin(), program.steps.end(), [&](const StepPointer& step) {
           const auto* convolution = dynamic_cast<const Convolution*>(step.get());
           return convolution != nullptr && is_channels_last(parameters[convolution->weight.number]);
         });
}

/// Tells the layers behind the block of the copies of its results that passes packed.
void share_copies(const Plan& plan, const Schedule& schedule, const ForwardResult& run) {
  for (size_t number = 0; number < run.results.size(); ++number) {
    const Value value = plan.program.results[number];
    const auto slot = schedule.slots.find({value, Form::kCopy});
    const auto format = plan.copies.find(value);
    if (slot != schedule.slots.end() && format->second.kind == CopyFormat::Kind::kPass) {
      const size_t first = slot->second.first;
      share_copy(run.results[number],
                 PassCopy{run.saved[first], run.saved[first + 1], format->second.activation, format->second.bits});
    }
  }
}

int64_t bytes_of(const std::vector<at::Tensor>& tensors) {
  return std::accumulate(tensors.begin(), tensors.end(), int64_t{0}, [](int64_t bytes, const at::Tensor& tensor) {
    return bytes + static_cast<int64_t>(tensor.defined() ? tensor.nbytes() : 0);
  });
}

/// Copies of inputs that whoever made them has packed already.
struct KnownCopies {
  std::vector<Import> imports;
  std::vector<at::Tensor> tensors;
};

KnownCopies known_copies(const Plan& plan, const std::vector<at::Tensor>& inputs) {
  KnownCopies known;
  for (size_t number = 0; number < inputs.size(); ++number) {
    const Value input{static_cast<int64_t>(number)};
    const bool is_exported = std::find(plan.exports.begin(), plan.exports.end(), input) != plan.exports.end();
    const bool is_asked = plan.copies.contains(input) && plan.imports.empty() && !is_exported;
    if (const auto copy = is_asked ? find_pass_copy(inputs[number]) : std::nullopt) {
      known.imports.push_back(
          {input, {.kind = CopyFormat::Kind::kPass, .bits = copy->bits, .activation = copy->activation}});
      known.tensors.insert(known.tensors.end(), {copy->packed, copy->decode});
    }
  }
  return known;
}

void check_arguments(const PreparedPlan& prepared, const std::vector<at::Tensor>& inputs,
                     const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& buffers,
                     const std::vector<c10::SymInt>& integers, const std::vector<at::Tensor>& copies) {
  check_lengths(prepared, {inputs.size(), parameters.size(), buffers.size(), integers.size(), copies.size()});
  check_floating(kBlockName, "an input", inputs[0]);
  for (const at::Tensor& input : inputs) {
    if (input.is_floating_point()) {
      check_floating(kBlockName, "an input", input);
    }
    TORCH_CHECK_VALUE(input.device() == inputs[0].device(), kBlockName, ": inputs must be on one device, got ",
                      inputs[0].device(), " and ", input.device());
  }
}

/// Without autocast, and where the program names no dtypes, nothing is cast.
void check_dtypes(const Program& program, const std::vector<at::Tensor>& parameters, at::ScalarType dtype) {
  for (const StepPointer& step : program.steps) {
    for (const ParameterIndex index : step->cast_parameters()) {
      const at::ScalarType found = parameters[index.number].scalar_type();
      TORCH_CHECK_TYPE(found == dtype, kBlockName, ": without autocast, a ", step->name(),
                       "'s weight must have the inputs' dtype, ", dtype, ", got ", found);
    }
  }
}

/// The results of measured blocks that the gradient of a tensor goes to, through functions of others.
std::vector<PlaceInRun> sources_of(const torch::autograd::Edge& edge) {
  std::vector<PlaceInRun> sources;
  std::vector<const torch::autograd::Edge*> waiting{&edge};
  std::set<const torch::autograd::Node*> seen;
  while (!waiting.empty()) {
    const auto& [node, number] = *waiting.back();
    waiting.pop_back();
    if (const auto* block = dynamic_cast<const BlockBackward*>(node.get()); block != nullptr) {
      if (block->run().measured) {
        sources.push_back({block->run().measured_as, number});
      }
    } else if (node != nullptr && seen.insert(node.get()).second) {
      for (const torch::autograd::Edge& next : node->next_edges()) {
        waiting.push_back(&next);
      }
    }
  }
  return sources;
}

}  // namespace

std::vector<at::Tensor> run_prepared(const std::shared_ptr<const PreparedPlan>& prepared,
                                     const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& parameters,
                                     const std::vector<at::Tensor>& buffers, const std::vector<c10::SymInt>& integers,
                                     const std::vector<at::Tensor>& copies) {
  const Plan& plan = prepared->plan;
  check_arguments(*prepared, inputs, parameters, buffers, integers, copies);
  // Asked here: below, autocast is excluded, and would seem to be off.
  const c10::DeviceType device = inputs[0].device().type();
  const bool autocast = device != c10::DeviceType::Meta && at::autocast::is_autocast_enabled(device);
  const at::ScalarType dtype = autocast ? at::autocast::get_autocast_dtype(device) : inputs[0].scalar_type();
  if (!autocast && plan.program.dtypes.empty()) {
    check_dtypes(plan.program, parameters, dtype);
  }
  const bool traced = !prepared->text.empty() && is_traced(inputs[0]);
  RunRecord run{.prepared = prepared,
                .schedule = nullptr,
                .wanted = {},
                .exports = at::GradMode::is_enabled(),
                .is_traced = traced,
                .dtype = dtype,
                .integers = integers,
                .sizes = {},
                .input_dtypes = {},
                .measured = nullptr};
  for (const auto* list : {&inputs, &parameters}) {
    for (const at::Tensor& tensor : *list) {
      run.wanted.push_back(at::GradMode::is_enabled() && tensor.requires_grad());
    }
  }
  for (const at::Tensor& input : inputs) {
    run.sizes.push_back(input.sym_sizes().vec());
    run.input_dtypes.push_back(input.scalar_type());
  }
  run.schedule = prepared->schedule(run.wanted, run.exports);
  ForwardResult result;
  {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const at::AutoDispatchBelowADInplaceOrView guard;
    ForwardArguments arguments;
    arguments.parameters = parameters;
    arguments.integers = integers;
    arguments.copies = copies;
    arguments.dtype = dtype;
    arguments.inputs = inputs;
    arguments.buffers = buffers;
    if (traced) {
      TracedForward forward = traced_forward(*prepared, *run.schedule, arguments, run.wanted, run.exports);
      if (!buffers.empty()) {
        at::_foreach_copy_(buffers, forward.buffers);
      }
      result = std::move(forward.result);
    } else {
      result = run_forward(plan, *run.schedule, arguments);
    }
    const bool stays_channels_last = gives_channels_last(plan.program, inputs, parameters);
    for (size_t number = 0; number < result.results.size(); ++number) {
      at::Tensor& tensor = result.results[number];
      const Layout layout = plan.layouts[plan.program.results[number].number];
      if (!(layout == Layout::kChannels && stays_channels_last)) {
        tensor = tensor.contiguous();
      }
      // A result is nobody else's memory: an input may have passed through views only.
      const auto is_alias = [&](const at::Tensor& other) { return tensor.is_alias_of(other); };
      const auto before = result.results.begin() + static_cast<int64_t>(number);
      if (std::any_of(inputs.begin(), inputs.end(), is_alias) ||
          std::any_of(result.results.begin(), before, is_alias)) {
        tensor = tensor.clone();
      }
    }
    if (!traced) {
      share_copies(plan, *run.schedule, result);
    }
  }
  const bool trains = std::find(run.wanted.begin(), run.wanted.end(), true) != run.wanted.end();
  if (!traced) {
    prepared->saved_bytes = trains ? bytes_of(result.saved) : 0;
  }
  if (trains) {
    variable_list sources(inputs);
    sources.insert(sources.end(), parameters.begin(), parameters.end());
    torch::autograd::edge_list edges = torch::autograd::collect_next_edges(sources);
    const std::shared_ptr<MeasuredRuns> pass = traced ? nullptr : runs_to_measure(plan);
    if (pass && !is_capturing(inputs[0].device())) {
      std::vector<std::vector<PlaceInRun>> behind;
      std::transform(edges.begin(), edges.begin() + static_cast<int64_t>(inputs.size()), std::back_inserter(behind),
                     sources_of);
      std::tie(run.measured, run.measured_as) =
          pass->add({*prepared, *run.schedule, result.saved, copies, run.sizes, parameters, integers, behind});
    }
    torch::autograd::set_history(
        result.results, make_node<BlockBackward>(std::move(edges), std::move(run), result.saved, copies, parameters));
  }
  result.results.insert(result.results.end(), result.exported.begin(), result.exported.end());
  return std::move(result.results);
}

Block::Block(Program program, const PlanOptions& options) : Block(make_plan(std::move(program), options)) {}
Block::Block(Plan plan) {
  check_plan(plan);
  prepared_ = std::make_shared<const PreparedPlan>(std::move(plan));
}

std::vector<at::Tensor> Block::run(const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& parameters,
                                   const std::vector<at::Tensor>& buffers, const std::vector<c10::SymInt>& integers,
                                   const std::vector<at::Tensor>& copies) const {
  const auto [imports, known] = copies.empty() ? known_copies(plan(), inputs) : KnownCopies();
  if (imports.empty()) {
    return run_prepared(prepared_, inputs, parameters, buffers, integers, copies);
  }
  const std::shared_ptr<const PreparedPlan> importing = prepared_->importing(imports);
  std::vector<at::Tensor> results = run_prepared(importing, inputs, parameters, buffers, integers, known);
  prepared_->saved_bytes = importing->saved_bytes.load();
  return results;
}

const Plan& Block::plan() const { return prepared_->plan; }
int64_t Block::saved_bytes() const { return prepared_->saved_bytes; }

}  // namespace actnn::blocks
