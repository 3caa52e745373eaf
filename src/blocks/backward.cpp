#include "src/blocks/backward.h"

#include <algorithm>
#include <functional>
#include <map>
#include <utility>

#include "src/blocks/cast_parameters.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/dropout.h"
#include "src/blocks/steps/linear.h"
#include "src/blocks/steps/permute.h"
#include "src/blocks/steps/reshape.h"
#include "src/blocks/steps/rotary.h"
#include "src/blocks/value_sizes.h"
#include "src/ops/cast_together.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

/// Whether all that forward thought would be wanted is.
bool is_all_wanted(const Schedule& schedule, const std::vector<bool>& wanted) {
  const auto inputs = static_cast<int64_t>(wanted.size() - schedule.wanted_parameters.size());
  return std::equal(wanted.begin(), wanted.begin() + inputs, schedule.wanted_values.begin()) &&
         std::equal(schedule.wanted_parameters.begin(), schedule.wanted_parameters.end(), wanted.begin() + inputs);
}

class Backward : public BackwardRun {
 public:
  Backward(const Plan& plan, const Schedule& schedule, BackwardArguments arguments, const std::vector<bool>& wanted)
      : plan_(plan),
        schedule_(schedule),
        arguments_(std::move(arguments)),
        wanted_(wanted),
        wanted_values_(is_all_wanted(schedule, wanted) ? schedule.wanted_values : wanted_values(plan, wanted)),
        gradients_(plan.program.values()),
        results_(wanted.size()),
        sizes_(infer_sizes(plan.program, arguments_.sizes, arguments_.parameters, arguments_.integers)) {
    for (const at::Tensor& parameter : arguments_.parameters) {
      parameter_dtypes_.push_back(parameter.scalar_type());
    }
    cast_parameters(plan.program, arguments_.parameters, arguments_.dtype);
    for (size_t result = 0; result < plan.program.results.size(); ++result) {
      if (arguments_.grads[result].defined()) {
        gradients_[plan.program.results[result].number].add(std::move(arguments_.grads[result]));
      }
    }
  }

  std::vector<at::Tensor> run(const std::vector<at::ScalarType>& input_dtypes) {
    for (stage_ = plan_.stages.size(); stage_-- > 0;) {
      const Step& stage = *plan_.stages[stage_];
      if (!stage.is_view() && !is_linear_layer(stage)) {
        add_sums_of_rows();
      }
      const bool has_gradient = std::any_of(stage.outputs.begin(), stage.outputs.end(),
                                            [&](Value output) { return gradients_[output.number].defined(); });
      if (has_gradient && wants(stage.output())) {
        stage.backward(*this);
      }
      for (const Value output : stage.outputs) {
        gradients_[output.number] = {};
        if (is_awaited(output)) {
          give_copy(output, BackwardRun::copy(output));
        }
      }
      std::erase_if(decoded_, [&](const auto& entry) { return last_copy_reader(entry.first) >= stage_; });
    }
    add_sums_of_rows();
    std::vector<at::ScalarType> dtypes = input_dtypes;
    dtypes.insert(dtypes.end(), parameter_dtypes_.begin(), parameter_dtypes_.end());
    for (int64_t input = 0; input < plan_.program.inputs; ++input) {
      if (wanted_[input]) {
        gradients_[input].join();
        results_[input] = std::move(gradients_[input].first);
      }
    }
    cast_results(dtypes);
    return std::move(results_);
  }

  bool wants(Value value) const override { return wanted_values_[value.number]; }
  bool wants(ParameterIndex index) const override { return wanted_[plan_.program.inputs + index.number]; }
  using Wants::wants;

  Gradient take(Value value) override { return std::exchange(gradients_[value.number], {}); }
  void add(Value value, SummedGradient gradient) override {
    gradients_[value.number].add(std::move(gradient.grad), std::move(gradient.sums));
  }
  bool reads_sums(Value value) const override {
    const Step* const maker = schedule_.makers[value.number];
    const bool shows = dynamic_cast<const Reshape*>(maker) != nullptr || dynamic_cast<const Flatten*>(maker) != nullptr;
    if (shows && have_same_rows(sizes(maker->inputs[0]), sizes(value))) {
      return reads_sums(maker->inputs[0]);
    }
    const auto* const linear = dynamic_cast<const Linear*>(maker);
    return linear != nullptr && wants(linear->bias);
  }
  std::optional<at::Tensor> take_owned(Value value, at::ScalarType dtype) override {
    return gradients_[value.number].take_owned(dtype);
  }
  /// A parameter may be used by several steps.
  void add(ParameterIndex index, at::Tensor gradient) override {
    at::Tensor& result = results_[plan_.program.inputs + index.number];
    result = result.defined() ? result.add(gradient) : std::move(gradient);
  }
  /// Until all linear layers that follow each other have run: what they have gradients of is often one tensor's parts.
  void add_sum_of_rows(ParameterIndex index, const at::Tensor& rows) override {
    if (is_traced(rows)) {
      add(index, sum_rows(rows));  // of sizes that should not be compared
      return;
    }
    constexpr size_t kMost = 4;  // so that few gradients live longer than they would
    if (!summed_.empty() && (summed_.size() == kMost || rows.sym_sizes() != summed_.back().second.sym_sizes())) {
      add_sums_of_rows();
    }
    summed_.emplace_back(index, rows);
  }

  at::Tensor copy(Value value, at::ScalarType dtype) override { return with_dtype(take_copy(value, dtype), dtype); }
  void with_copy(Value value, at::ScalarType dtype, std::function<void(const at::Tensor&)> use) override {
    const Value shown = shown_by(value);
    const Step* const maker = schedule_.makers[shown.number];
    // What is saved of it, or was unpacked, is what the plan says it is.
    if (!plan_.recomputes.contains(shown) || !wants(shown) || decoded_.contains(shown) || !maker->gives_copy(*this)) {
      use(copy(value, dtype));
      return;
    }
    awaited_[shown].push_back([this, value, shown, dtype, use = std::move(use)](const at::Tensor& given) {
      decoded_.insert_or_assign(shown, given);
      use(copy(value, dtype));
      decoded_.erase(shown);
    });
  }
  bool is_awaited(Value value) const override { return awaited_.contains(value); }
  void give_copy(Value value, const at::Tensor& copy) override {
    const auto uses = awaited_.extract(value);
    TORCH_INTERNAL_ASSERT(!uses.empty(), "nobody waits for this copy");
    for (const auto& use : uses.mapped()) {
      use(copy);
    }
  }
  std::optional<PackedRows> packed_rows(Value value, at::ScalarType dtype) override {
    const auto format = plan_.copies.find(value);
    if (format == plan_.copies.end() || decoded_.contains(value) ||
        decoding_dtype(this->dtype(value), dtype) != dtype ||
        !is_rows_in_columns(format->second, sizes(value), layout(value)) || !has_saved(value, Form::kCopy)) {
      return std::nullopt;
    }
    const at::Tensor& packed = saved(value, Form::kCopy)[0];
    return can_activate_packed_rows(packed, sizes(value).back())
               ? std::optional(PackedRows{packed, format->second.bits, format->second.group_rows})
               : std::nullopt;
  }
  const std::vector<at::Tensor>& saved(Value value, Form form) const override {
    const std::pair key(value, form);
    const auto known = forms_.find(key);
    if (known != forms_.end()) {
      return known->second;
    }
    const Schedule::Slot& slot = schedule_.slots.at(key);
    const auto first = arguments_.saved.begin() + static_cast<int64_t>(slot.first);
    return forms_.emplace(key, std::vector<at::Tensor>(first, first + static_cast<int64_t>(slot.parts))).first->second;
  }
  bool has_saved(Value value, Form form) const override { return schedule_.slots.contains({value, form}); }
  const at::Tensor& parameter(ParameterIndex index) const override { return arguments_.parameters[index.number]; }
  at::ScalarType dtype(Value value) const override { return dtype_of(plan_.program, value, arguments_.dtype); }
  const Sizes& sizes(Value value) const override { return sizes_[value.number]; }
  Layout layout(Value value) const override { return plan_.layouts[value.number]; }
  CopyFormat saved_format(Value output) const override { return plan_.saved_format(output); }
  std::vector<c10::SymInt> strides(Value value) const override {
    const Step* const maker = schedule_.makers[value.number];
    const auto* const permuted = dynamic_cast<const Permute*>(maker);
    if (layout(value) != Layout::kStrided || permuted == nullptr) {
      return strides_of(sizes(value), layout(value));
    }
    const std::vector<c10::SymInt> shown = strides(permuted->inputs[0]);
    std::vector<c10::SymInt> result;
    for (const int64_t dimension : permuted->order()) {
      result.push_back(shown[dimension]);
    }
    return result;
  }

 private:
  /// Copies as the values of a step that is computed again.
  class Copies : public Operands {
   public:
    explicit Copies(Backward& backward) : backward_(backward) {}

    at::Tensor value(Value value) override { return backward_.BackwardRun::copy(value); }
    const at::Tensor& parameter(ParameterIndex index) const override { return backward_.parameter(index); }
    at::ScalarType dtype(Value value) const override { return backward_.dtype(value); }
    Layout layout(Value value) const override { return backward_.layout(value); }
    c10::SymInt integer(IntegerIndex index) const override { return backward_.arguments_.integers[index.number]; }
    const std::vector<at::Tensor>& saved(Value value, Form form) const override { return backward_.saved(value, form); }

   private:
    Backward& backward_;
  };

  /// The value of whose copy alone that of a view, or of what is dropped or rotated, is computed.
  Value shown_by(Value value) const {
    if (!plan_.recomputes.contains(value)) {
      return value;
    }
    const Step& maker = *schedule_.makers[value.number];
    if (!maker.is_view() && dynamic_cast<const Dropout*>(&maker) == nullptr &&
        dynamic_cast<const Rotary*>(&maker) == nullptr) {
      return value;
    }
    const std::vector<Value> copied = maker.copies_to_recompute();
    const Value shown = shown_by(copied.front());
    const bool is_alone =
        std::all_of(copied.begin(), copied.end(), [&](Value input) { return shown_by(input) == shown; });
    return is_alone ? shown : value;
  }

  /// The first stage, which is the last in backward, that reads a copy.
  size_t last_copy_reader(Value value) const {
    const auto reader = schedule_.first_copy_reader.find(value);
    return reader == schedule_.first_copy_reader.end() ? plan_.stages.size() : reader->second;
  }

  static bool is_linear_layer(const Step& stage) { return dynamic_cast<const Linear*>(&stage) != nullptr; }

  /// Whether the present stage and those in front of it, down to an earlier one, are linear layers of one dtype, such
  /// as those of query, key and value.
  bool are_neighbours(size_t first) const {
    const auto begin = plan_.stages.begin();
    const at::ScalarType own = dtype(plan_.stages[stage_]->output());
    return std::all_of(begin + static_cast<int64_t>(first), begin + static_cast<int64_t>(stage_),
                       [&](const StepPointer& stage) {
                         return stage->is_view() || (is_linear_layer(*stage) && dtype(stage->output()) == own);
                       });
  }

  /// Whether a copy is kept: for those that compute other copies again of it, but not from a stage that reads it to the
  /// next, unless they are neighbours.
  bool is_taken_again(Value value) const {
    const std::vector<Value>& inputs = plan_.stages[stage_]->inputs;
    const size_t last = last_copy_reader(value);
    if (last < stage_) {
      const bool is_read = std::find(inputs.begin(), inputs.end(), value) != inputs.end();
      return !is_read || are_neighbours(last);
    }
    // Query, key and value may show one product.
    return std::count_if(inputs.begin(), inputs.end(), [&](Value input) { return shown_by(input) == value; }) > 1;
  }

  /// In the dtype, or in the value's.
  at::Tensor take_copy(Value value, at::ScalarType dtype) {
    auto known = decoded_.find(value);
    if (known == decoded_.end()) {
      known = decoded_.emplace(value, decode(value, dtype)).first;
    }
    if (is_taken_again(value)) {
      return known->second;
    }
    at::Tensor last = std::move(known->second);
    decoded_.erase(known);
    return last;
  }

  at::Tensor decode(Value value, at::ScalarType dtype) {
    if (plan_.recomputes.contains(value)) {
      return computed_again(value, dtype);
    }
    size_t first = 0;
    for (const Import& import : plan_.imports) {
      const size_t parts = import.format.parts();
      if (import.input == value) {
        const auto tensors = arguments_.copies.begin() + static_cast<int64_t>(first);
        return unpacked({tensors, tensors + static_cast<int64_t>(parts)}, import.format, value, dtype);
      }
      first += parts;
    }
    return unpacked(saved(value, Form::kCopy), plan_.copies.at(value), value, dtype);
  }

  at::Tensor unpacked(const std::vector<at::Tensor>& tensors, const CopyFormat& format, Value value,
                      at::ScalarType wanted) const {
    return unpack_copy(tensors, format, sizes(value), layout(value), decoding_dtype(dtype(value), wanted));
  }

  /// By the step that made it, of copies.
  at::Tensor computed_again(Value value, at::ScalarType dtype) {
    const Step& step = *schedule_.makers[value.number];
    if (step.copies_from_saved(value)) {
      return step.copy_from_saved(*this, dtype);
    }
    Copies copies(*this);
    const std::vector<at::Tensor> outputs = step.compute(copies);
    const at::Tensor& output =
        outputs[std::find(step.outputs.begin(), step.outputs.end(), value) - step.outputs.begin()];
    // Attention takes heads as they lie.
    return layout(value) == Layout::kHeads ? output : in_layout(output, layout(value));
  }

  void add_sums_of_rows() {
    if (summed_.empty()) {
      return;
    }
    std::vector<at::Tensor> rows;
    for (const auto& [index, of_index] : summed_) {
      rows.push_back(of_index);
    }
    std::vector<at::Tensor> sums = sum_rows(rows);
    for (size_t place = 0; place < sums.size(); ++place) {
      add(summed_[place].first, std::move(sums[place]));
    }
    summed_.clear();
  }

  /// Gradients in the dtypes of what they are of.
  void cast_results(const std::vector<at::ScalarType>& dtypes) {
    std::vector<at::Tensor*> gradients;
    std::vector<at::ScalarType> wanted;
    for (size_t index = 0; index < results_.size(); ++index) {
      if (results_[index].defined()) {
        gradients.push_back(&results_[index]);
        wanted.push_back(dtypes[index]);
      }
    }
    cast_together(gradients, wanted);
  }

  const Plan& plan_;
  const Schedule& schedule_;
  BackwardArguments arguments_;
  const std::vector<bool>& wanted_;
  std::vector<bool> wanted_values_;
  std::vector<Gradient> gradients_;
  std::vector<at::Tensor> results_;
  std::vector<Sizes> sizes_;
  std::vector<at::ScalarType> parameter_dtypes_;  // as forward was given them
  std::map<Value, at::Tensor> decoded_;
  std::map<Value, std::vector<std::function<void(const at::Tensor&)>>> awaited_;  // copies that a stage will have
  std::vector<std::pair<ParameterIndex, at::Tensor>> summed_;  // gradients of rows whose sums are to be added
  mutable std::map<std::pair<Value, Form>, std::vector<at::Tensor>> forms_;
  size_t stage_ = 0;
};

}  // namespace

std::vector<at::Tensor> run_backward(const Plan& plan, const Schedule& schedule, BackwardArguments arguments,
                                     const std::vector<bool>& wanted, const std::vector<at::ScalarType>& input_dtypes) {
  return Backward(plan, schedule, std::move(arguments), wanted).run(input_dtypes);
}

}  // namespace actnn::blocks
