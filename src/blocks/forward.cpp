#include "src/blocks/forward.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>

#include "src/blocks/cast_parameters.h"
#include "src/blocks/run.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

class Forward : public ForwardRun {
 public:
  Forward(const Plan& plan, const Schedule& schedule, const ForwardArguments& arguments)
      : plan_(plan),
        schedule_(schedule),
        arguments_(arguments),
        parameters_(arguments.parameters),
        values_(plan.program.values()),
        seconds_(plan.program.values()),
        saved_(schedule.saved_tensors) {
    cast_parameters(plan.program, parameters_, arguments.dtype);
    for (const StepPointer& stage : plan.stages) {
      if (stage->packs_input()) {
        packers_.emplace(stage->inputs[0], stage.get());
      }
    }
  }

  ForwardResult run() {
    for (int64_t input = 0; input < plan_.program.inputs; ++input) {
      const at::Tensor& given = arguments_.inputs[input];
      values_[input] =
          in_layout(given.is_floating_point() ? with_dtype(given, dtype({input})) : given, layout({input}));
      save_copy({input});
    }
    for (stage_ = 0; stage_ < plan_.stages.size(); ++stage_) {
      const Step& stage = *plan_.stages[stage_];
      stage.forward(*this);
      for (const Value output : stage.outputs) {
        if (!packing(output)) {
          save_copy(output);
        }
        release(output);
      }
      if (stage.packs_input()) {
        save_copy(stage.inputs[0]);  // unless it has
      }
      for (const Value input : stage.inputs) {
        release(input);
      }
    }
    ForwardResult result;
    std::transform(plan_.program.results.begin(), plan_.program.results.end(), std::back_inserter(result.results),
                   [&](Value value) { return values_[value.number]; });
    result.exported = exported_copies(plan_, schedule_, saved_);
    result.saved = std::move(saved_);
    return result;
  }

  at::Tensor value(Value value) override { return values_[value.number]; }
  at::Tensor value(Value value, at::ScalarType dtype) override {
    const at::Tensor& as_it_is = values_[value.number];
    if (as_it_is.scalar_type() == dtype) {
      return as_it_is;
    }
    // Several products may read it so.
    at::Tensor& second = seconds_[value.number];
    if (!second.defined() || second.scalar_type() != dtype) {
      second = as_it_is.to(dtype);
    }
    return second;
  }
  const at::Tensor& parameter(ParameterIndex index) const override { return parameters_[index.number]; }
  at::ScalarType dtype(Value value) const override { return dtype_of(plan_.program, value, arguments_.dtype); }
  c10::SymInt integer(IntegerIndex index) const override { return arguments_.integers[index.number]; }

  bool wants(Value value) const override { return schedule_.wanted_values[value.number]; }
  bool wants(ParameterIndex index) const override { return schedule_.wanted_parameters[index.number]; }

  void set(Value value, at::Tensor tensor) override { values_[value.number] = std::move(tensor); }
  std::optional<at::Tensor> buffer(const std::optional<BufferIndex>& index) const override {
    return index ? std::optional(arguments_.buffers[index->number]) : std::nullopt;
  }
  bool saves(Value value, Form form) const override { return schedule_.slots.contains({value, form}); }
  void save(Value value, Form form, std::vector<at::Tensor> tensors) override {
    const Schedule::Slot& slot = schedule_.slots.at({value, form});
    TORCH_INTERNAL_ASSERT(tensors.size() == slot.parts);
    for (size_t part = 0; part < slot.parts; ++part) {
      // A result that is saved as it is would own the node that saves it. An input is saved as what it is, so that
      // autograd notices when somebody writes to it.
      const bool is_value = form == Form::kExact || form == Form::kCopy;
      const bool is_input = value.number < plan_.program.inputs;
      saved_[slot.first + part] = is_value && !is_input ? alone(value, form, tensors[part]) : std::move(tensors[part]);
    }
  }
  std::optional<ColumnQuantization> packing(Value value) const override {
    const auto packer = packers_.find(value);
    const at::Tensor& tensor = values_[value.number];
    if (packer == packers_.end() || !is_to_be_packed(value) || !can_activate_and_pack_rows(tensor) ||
        tensor.scalar_type() != dtype(packer->second->output())) {
      return std::nullopt;
    }
    const CopyFormat& format = plan_.copies.at(value);
    if (!is_rows_in_columns(format, tensor.sym_sizes(), layout(value))) {
      return std::nullopt;
    }
    return ColumnQuantization{.bits = format.bits, .group_rows = format.group_rows, .rounding = rounding()};
  }
  Layout layout(Value value) const override { return plan_.layouts[value.number]; }
  Rounding rounding() const override { return plan_.options.rounding; }
  CopyFormat saved_format(Value output) const override { return plan_.saved_format(output); }
  std::optional<at::ScalarType> second_dtype(Value output) const override {
    const auto found = plan_.second_dtypes.find(output);
    return found == plan_.second_dtypes.end() ? std::nullopt : std::optional(found->second);
  }
  void set_second(Value output, at::Tensor tensor) override { seconds_[output.number] = std::move(tensor); }

 private:
  bool is_to_be_packed(Value value) const {
    const auto slot = schedule_.slots.find({value, Form::kCopy});
    return slot != schedule_.slots.end() && !saved_[slot->second.first].defined();
  }

  /// The copy of a value that no pass packs.
  void save_copy(Value value) {
    if (is_to_be_packed(value)) {
      save(value, Form::kCopy,
           pack_copy(in_layout(values_[value.number], layout(value)), plan_.copies.at(value), layout(value),
                     rounding()));
    }
  }

  /// What is saved of a value, and nothing else: of an input, which others may write to, or of something larger that is
  /// packed, an exact part is copied.
  at::Tensor alone(Value value, Form form, const at::Tensor& tensor) const {
    const bool is_exact_copy = form == Form::kCopy && plan_.copies.at(value).kind == CopyFormat::Kind::kExact;
    if ((form == Form::kCopy && !is_exact_copy) || is_traced(tensor) || !tensor.has_storage()) {
      return tensor.detach();
    }
    const bool is_of_input =
        std::any_of(arguments_.inputs.begin(), arguments_.inputs.end(),
                    [&](const at::Tensor& input) { return input.has_storage() && tensor.is_alias_of(input); });
    const bool is_part = is_exact_copy && tensor.storage().nbytes() > tensor.nbytes();
    return is_of_input || is_part ? tensor.clone() : tensor.detach();
  }

  void release(Value value) {
    if (schedule_.last_reader[value.number] <= stage_) {
      values_[value.number].reset();
      seconds_[value.number].reset();
    }
  }

  const Plan& plan_;
  const Schedule& schedule_;
  const ForwardArguments& arguments_;
  std::vector<at::Tensor> parameters_;  // those that are cast in the dtype of their steps
  std::vector<at::Tensor> values_;
  std::vector<at::Tensor> seconds_;  // in another dtype
  std::vector<at::Tensor> saved_;
  std::map<Value, const Step*> packers_;  // of values whose copies their readers may pack
  size_t stage_ = 0;
};

}  // namespace

std::vector<at::Tensor> exported_copies(const Plan& plan, const Schedule& schedule,
                                        const std::vector<at::Tensor>& saved) {
  std::vector<at::Tensor> exported;
  for (const Value value : plan.exports) {
    const auto slot = schedule.slots.find({value, Form::kCopy});
    for (size_t part = 0; slot != schedule.slots.end() && part < slot->second.parts; ++part) {
      exported.push_back(saved[slot->second.first + part]);
    }
  }
  return exported;
}

ForwardResult run_forward(const Plan& plan, const Schedule& schedule, const ForwardArguments& arguments) {
  return Forward(plan, schedule, arguments).run();
}

}  // namespace actnn::blocks
