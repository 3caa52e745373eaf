#include "actnn/blocks/block.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <utility>

#include "src/autograd/saved_activation.h"
#include "src/blocks/backward.h"
#include "src/blocks/forward.h"
#include "src/ops/checks.h"
#include "src/ops/tensors.h"
#include "src/ops/torch_version.h"

namespace actnn::blocks {
namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

constexpr const char* kBlockName = "block";

class BlockBackward : public torch::autograd::Node {
 public:
  BlockBackward(torch::autograd::edge_list&& edges, std::shared_ptr<const Plan> plan, Kept kept,
                const std::vector<at::Tensor>& parameters, at::ScalarType dtype)
      : Node(std::move(edges)), plan_(std::move(plan)), kept_(std::move(kept)), dtype_(dtype) {
    for (const at::Tensor& parameter : parameters) {
      parameters_.emplace_back(parameter, /*is_output=*/false);
    }
  }

  std::string name() const override { return "ActnnBlockBackward"; }

  variable_list apply(variable_list&& grads) override {
    refuse_double_backward(kBlockName);
    const std::lock_guard lock(mutex_);
    TORCH_CHECK(!released_, torch::autograd::ERR_BACKWARD_TWICE);
    const size_t count = plan_->program.inputs + parameters_.size();
    if (!grads[0].defined()) {
      return variable_list(count);
    }
    BackwardArguments arguments{.parameters = {}, .wanted = {}, .dtype = dtype_, .grad = std::move(grads[0])};
    for (const SavedVariable& parameter : parameters_) {
      arguments.parameters.push_back(parameter.unpack());
    }
    for (size_t gradient = 0; gradient < count; ++gradient) {
      arguments.wanted.push_back(task_should_compute_output(gradient));
    }
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const at::AutoDispatchBelowADInplaceOrView guard;
    return run_backward(*plan_, kept_, std::move(arguments));
  }

  void release_variables() override {
    const std::lock_guard lock(mutex_);
    released_ = true;
    kept_ = {};
    for (SavedVariable& parameter : parameters_) {
      parameter.reset_data();
    }
  }

 private:
  std::shared_ptr<const Plan> plan_;
  Kept kept_;
  std::vector<SavedVariable> parameters_;
  at::ScalarType dtype_;
  bool released_ = false;
};

bool is_channels_last(const at::Tensor& tensor) {
  const at::MemoryFormat format = tensor.suggest_memory_format();
  return format == at::MemoryFormat::ChannelsLast || format == at::MemoryFormat::ChannelsLast3d;
}

/// The result, which is channels_last, in the layout that torch's layers would give it: channels_last if an input or a convolution's
/// weight is.
at::Tensor in_layout_of_layers(const Program& program, const std::vector<at::Tensor>& inputs,
                               const std::vector<at::Tensor>& parameters, const ForwardResult& result) {
  bool channels_last = std::any_of(inputs.begin(), inputs.end(), is_channels_last);
  for (const Step& step : program.steps) {
    const auto* convolution = std::get_if<Convolution>(&step);
    channels_last = channels_last || (convolution != nullptr && is_channels_last(parameters[convolution->weight]));
  }
  if (channels_last || result.output.is_contiguous()) {
    return result.output;
  }
  at::Tensor contiguous = result.output.contiguous();
  const auto copy = result.kept.copies.find(program.output());
  if (copy != result.kept.copies.end() && copy->second.split) {
    share_copy(contiguous, *copy->second.split);
  }
  return contiguous;
}

template <class List>
void check_length(const char* what, const List& list, int64_t expected) {
  TORCH_CHECK_VALUE(static_cast<int64_t>(list.size()) == expected, kBlockName, ": ", what, " must have ", expected,
                    " entries, got ", list.size());
}

void check_arguments(const Program& program, const std::vector<at::Tensor>& inputs,
                     const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& buffers,
                     const std::vector<bool>& batch_statistics) {
  check_length("inputs", inputs, program.inputs);
  check_length("parameters", parameters, program.parameters());
  check_length("buffers", buffers, program.buffers());
  check_length("batch_statistics", batch_statistics,
               std::count_if(program.steps.begin(), program.steps.end(),
                             [](const Step& step) { return std::holds_alternative<BatchNorm>(step); }));
  for (const at::Tensor& input : inputs) {
    check_floating(kBlockName, "an input", input);
    TORCH_CHECK_VALUE(input.dim() >= 2 && input.size(1) > 0, kBlockName,
                      ": an input must have shape [N, C] or [N, C, ...], with channels, got shape ", input.sizes());
    TORCH_CHECK_VALUE(input.device() == inputs[0].device(), kBlockName, ": inputs must be on one device, got ",
                      inputs[0].device(), " and ", input.device());
  }
}

}  // namespace

Block::Block(Program program, const PlanOptions& options) : Block(make_plan(std::move(program), options)) {}
Block::Block(Plan plan) : plan_(std::make_shared<const Plan>(std::move(plan))) {}

at::Tensor Block::run(const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& parameters,
                      const std::vector<at::Tensor>& buffers, const std::vector<bool>& batch_statistics) const {
  check_arguments(plan_->program, inputs, parameters, buffers, batch_statistics);
  // Asked here: below, autocast is excluded, and would seem to be off.
  const c10::DeviceType device = inputs[0].device().type();
  const bool autocast = at::autocast::is_autocast_enabled(device);
  const at::ScalarType dtype = autocast ? at::autocast::get_autocast_dtype(device) : inputs[0].scalar_type();
  std::vector<bool> wanted;
  for (const auto* list : {&inputs, &parameters}) {
    for (const at::Tensor& tensor : *list) {
      wanted.push_back(at::GradMode::is_enabled() && tensor.requires_grad());
    }
  }
  ForwardResult result;
  {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const at::AutoDispatchBelowADInplaceOrView guard;
    Arguments arguments{.inputs = {},
                        .parameters = parameters,
                        .buffers = buffers,
                        .batch_statistics = batch_statistics,
                        .dtype = dtype,
                        .casts_weights = autocast};
    for (const at::Tensor& input : inputs) {
      arguments.inputs.push_back(with_dtype(input, dtype));
    }
    result = run_forward(*plan_, arguments, inputs, wanted);
    result.output = in_layout_of_layers(plan_->program, inputs, parameters, result);
  }
  if (std::find(wanted.begin(), wanted.end(), true) != wanted.end()) {
    *kept_bytes_ = result.kept_bytes;
    variable_list sources(inputs);
    sources.insert(sources.end(), parameters.begin(), parameters.end());
    torch::autograd::set_history(result.output,
                                 make_node<BlockBackward>(torch::autograd::collect_next_edges(sources), plan_,
                                                          std::move(result.kept), parameters, dtype));
  }
  return std::move(result.output);
}

}  // namespace actnn::blocks
