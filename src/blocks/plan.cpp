#include "actnn/blocks/plan.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "actnn/core/bit_packing.h"
#include "src/autograd/saved_activation.h"
#include "src/blocks/fusions/add_norm.h"
#include "src/blocks/fusions/dropout_add.h"
#include "src/blocks/fusions/fusion.h"
#include "src/blocks/fusions/gated_activation.h"
#include "src/blocks/fusions/kept_input.h"
#include "src/blocks/layouts.h"
#include "src/blocks/schedule.h"
#include "src/blocks/steps/activation.h"
#include "src/blocks/steps/add.h"
#include "src/blocks/steps/attention.h"
#include "src/blocks/steps/dropout.h"
#include "src/blocks/steps/layer_norm.h"
#include "src/blocks/steps/rms_norm.h"
#include "src/blocks/steps/rotary.h"
#include "src/blocks/steps/split.h"

namespace actnn::blocks {
namespace {

class AllWanted : public Wants {
 public:
  bool wants(Value /*value*/) const override { return true; }
  bool wants(ParameterIndex /*index*/) const override { return true; }
};

class Planner {
 public:
  Planner(Program program, const PlanOptions& options, std::vector<Import> imports)
      : plan_{.program = std::move(program), .options = options, .stages = {}, .fusions = {}, .layouts = {}} {
    plan_.imports = std::move(imports);
    plan_.layouts = infer_layouts(plan_.program);
    cast_outputs();
  }

  Plan plan() {
    make_stages();
    keep_inputs_of_activations();
    pack_attention();
    recompute_mlps();
    for (const StepPointer& stage : plan_.stages) {
      for (const Need& need : stage->needs(AllWanted())) {
        if (need.form == Form::kCopy) {
          demand(need.value, need.bits.value_or(0));
        } else if (need.form == Form::kNormalized || need.form == Form::kDerivative) {
          const int64_t bits = need.bits.value_or(plan_.options.bits_of(need.value, plan_.options.bits));
          plan_.saves[{need.value, need.form}] = packed(need.value, bits);
        }
      }
    }
    // What a copy is computed of has a smaller number.
    for (int64_t number = plan_.program.values(); number-- > 0;) {
      if (demanded_.contains({number})) {
        find_copy({number});
      }
    }
    return std::move(plan_);
  }

 private:
  /// What reads a value and what views show of it.
  struct Readers {
    std::vector<Value> shown;                ///< the value, and views of it
    std::optional<at::ScalarType> cast;      ///< the dtype in which products have it that cast it
    std::optional<at::ScalarType> of_value;  ///< ... those that read the value itself
    bool are_alike = true;                   ///< whether all readers are such products
  };

  void find_readers(Value value, Readers& found) const {
    const Program& program = plan_.program;
    const at::ScalarType own = program.dtypes[value.number];
    const bool is_shown_itself = found.shown.empty();
    found.shown.push_back(value);
    found.are_alike =
        found.are_alike && std::find(program.results.begin(), program.results.end(), value) == program.results.end();
    for (const StepPointer& reader : program.steps) {
      if (std::find(reader->inputs.begin(), reader->inputs.end(), value) == reader->inputs.end()) {
        continue;
      }
      const at::ScalarType of_reader = program.dtypes[reader->output().number];
      if (reader->is_view() && reader->inputs.size() == 1 && reader->outputs.size() == 1 && of_reader == own) {
        find_readers(reader->output(), found);
      } else if (reader->is_product() && c10::elementSize(of_reader) < c10::elementSize(own) &&
                 found.cast.value_or(of_reader) == of_reader) {
        found.cast = of_reader;
        found.of_value = is_shown_itself ? found.cast : found.of_value;
      } else {
        found.are_alike = false;
      }
    }
  }

  /// Under autocast norms compute in float32, and so do the powers of a GELU that is written out; products cast what
  /// they read: the passes write it as that. Where nobody else reads it, it is nothing else.
  void cast_outputs() {
    Program& program = plan_.program;
    for (const StepPointer& step : program.steps) {
      const auto* const activation = dynamic_cast<const Activation*>(step.get());
      const bool is_activation = activation != nullptr && is_smooth(activation->kind);
      if (program.dtypes.empty() || !(is_activation || is_norm_of_rows(*step))) {
        continue;
      }
      Readers readers;
      find_readers(step->output(), readers);
      const bool is_of_input = readers.cast == program.dtypes[step->inputs[0].number];
      if (readers.cast && readers.are_alike && (!is_activation || is_of_input)) {
        for (const Value value : readers.shown) {
          program.dtypes[value.number] = *readers.cast;
        }
      } else if (readers.of_value && !is_activation) {
        plan_.second_dtypes[step->output()] = *readers.of_value;
      }
    }
  }

  static bool is_norm_of_rows(const Step& step) {
    return dynamic_cast<const LayerNorm*>(&step) != nullptr || dynamic_cast<const RmsNorm*>(&step) != nullptr;
  }

  void make_stages() {
    const Program& program = plan_.program;
    const Window window(program, plan_.options, plan_.layouts);
    std::vector<bool> fused(program.steps.size());
    std::vector<StepPointer> passes(program.steps.size());
    for (const auto& find : {find_norm_act_passes, find_gated_activations, find_add_norms, find_dropout_adds}) {
      for (FusedPass& found : find(window)) {
        if (std::any_of(found.steps.begin(), found.steps.end(), [&](size_t step) { return fused[step]; })) {
          continue;  // it is part of another pass
        }
        for (const size_t step : found.steps) {
          fused[step] = true;
        }
        plan_.fusions.push_back({found.pass->name(), found.steps});
        passes[found.place] = std::move(found.pass);
      }
    }
    for (size_t step = 0; step < program.steps.size(); ++step) {
      if (passes[step] || !fused[step]) {
        plan_.stages.push_back(passes[step] ? passes[step] : program.steps[step]);
      }
    }
    for (const StepPointer& stage : plan_.stages) {
      for (const Value output : stage->outputs) {
        makers_[output] = stage.get();
      }
      if (stage->is_of_rows()) {
        of_rows_.insert(stage->inputs.begin(), stage->inputs.end());
        of_rows_.insert(stage->outputs.begin(), stage->outputs.end());
      }
    }
  }

  /// An activation whose output others read a copy of keeps its input instead of derivative and output.
  void keep_inputs_of_activations() {
    const std::set<Value> read = values_read_as_copies();
    for (StepPointer& stage : plan_.stages) {
      const auto* activation = dynamic_cast<const Activation*>(stage.get());
      if (activation != nullptr && is_smooth(activation->kind) && read.contains(activation->output()) &&
          !plan_.options.exact.contains(activation->output()) &&
          can_be_fine(activation->inputs[0], std::min(plan_.options.smooth_bits, kFewestSmoothBits))) {
        stage = std::make_shared<KeptInputActivation>(*activation, plan_.options.smooth_bits);
        makers_[stage->output()] = stage.get();
      }
    }
  }

  /// Attention is computed again from copies of query, key and value where those are fine enough.
  void pack_attention() {
    for (StepPointer& stage : plan_.stages) {
      const auto* attention = dynamic_cast<const Attention*>(stage.get());
      if (attention != nullptr && plan_.options.attention_bits != 0 &&
          std::all_of(attention->inputs.begin(), attention->inputs.begin() + 3,
                      [&](Value input) { return can_be_fine(input, kFewestAttentionBits); })) {
        Attention packed = *attention;
        packed.copy_bits = plan_.options.attention_bits;
        stage = std::make_shared<Attention>(std::move(packed));
        makers_[stage->output()] = stage.get();
        for (size_t place = 0; plan_.options.recompute_attention && place < 3; ++place) {
          recompute_up_to_product(stage->inputs[place]);
        }
      }
    }
  }

  /// What smooth activations are computed from is computed again, if that is wanted.
  void recompute_mlps() {
    for (const StepPointer& stage : plan_.stages) {
      if (plan_.options.recompute_mlp && is_of_kept_inputs(*stage)) {
        std::for_each(stage->inputs.begin(), stage->inputs.end(), [&](Value input) { recompute_up_to_product(input); });
      }
    }
  }

  /// A value that attention or an MLP's activation reads, and what it is made of, up to a product of what this program
  /// has made.
  void recompute_up_to_product(Value value) {
    const auto maker = makers_.find(value);
    if (maker == makers_.end()) {
      return;
    }
    const Step& stage = *maker->second;
    if (stage.is_product() && !is_input(stage.inputs[0])) {
      recomputed_products_.insert(value);
    }
    if (stage.is_view() || is_rotary(stage)) {
      recompute_up_to_product(stage.inputs[0]);
    }
  }

  /// Whether a value is an input of the program, or a view of one.
  bool is_input(Value value) const {
    const auto maker = makers_.find(value);
    return maker == makers_.end() || (maker->second->is_view() && is_input(maker->second->inputs[0]));
  }

  /// Those that a stage reads a copy of, and those that these are made of without becoming smaller.
  std::set<Value> values_read_as_copies() const {
    std::set<Value> read;
    for (auto position = plan_.stages.rbegin(); position != plan_.stages.rend(); ++position) {
      const StepPointer& stage = *position;
      const bool is_read = std::any_of(stage->outputs.begin(), stage->outputs.end(),
                                       [&](Value output) { return read.contains(output); });
      if (is_read && (stage->is_view() || dynamic_cast<const Dropout*>(stage.get()) != nullptr)) {
        read.insert(stage->inputs.begin(), stage->inputs.end());
      }
      for (const Need& need : stage->needs(AllWanted())) {
        if (need.form == Form::kCopy) {
          read.insert(need.value);
        }
      }
    }
    return read;
  }

  /// Whether the copy of a value has the bits that backward computes something from which is not linear. An input's is
  /// perhaps somebody else's, and one that is computed of others as coarse as they are.
  bool can_be_fine(Value value, int64_t bits) const {
    if (plan_.options.exact.contains(value)) {
      return true;
    }
    const auto maker = makers_.find(value);
    if (maker == makers_.end()) {
      return false;
    }
    const Step& stage = *maker->second;
    if (stage.is_view()) {
      return std::all_of(stage.inputs.begin(), stage.inputs.end(),
                         [&](Value input) { return can_be_fine(input, bits); });
    }
    if (is_rotary(stage)) {
      return can_be_fine(stage.inputs[0], bits);
    }
    if (const std::optional<CopyFormat> pass = stage.packs(value)) {
      return pass->bits >= bits;
    }
    // A norm's normalized copy has as many bits as it is asked for; functions of kept inputs have their own.
    return (stage.copies_from_saved(value) && (!is_of_kept_inputs(stage) || plan_.options.smooth_bits >= bits)) ||
           stage.is_product() || is_sum(stage, value) || !is_linear_in_copies(stage, plan_.options);
  }

  static bool is_of_kept_inputs(const Step& stage) {
    return dynamic_cast<const KeptInputActivation*>(&stage) != nullptr ||
           dynamic_cast<const GatedActivation*>(&stage) != nullptr;
  }

  static bool is_rotary(const Step& stage) { return dynamic_cast<const Rotary*>(&stage) != nullptr; }

  static bool is_sum(const Step& stage, Value value) {
    const auto* const normalized = dynamic_cast<const AddNorm*>(&stage);
    return dynamic_cast<const Add*>(&stage) != nullptr || dynamic_cast<const DropoutAdd*>(&stage) != nullptr ||
           (normalized != nullptr && normalized->sum() == value);
  }

  /// That backward reads the copy of a value, of `fewest_bits` at least.
  void demand(Value value, int64_t fewest_bits) {
    int64_t& bits = demanded_[value];
    bits = std::max(bits, fewest_bits);
  }

  /// How a value is packed by itself: in column groups where its channels are innermost in memory.
  CopyFormat packed(Value value, int64_t bits) const {
    const Layout layout = plan_.layouts[value.number];
    const bool has_rows = layout == Layout::kChannels || layout == Layout::kHeads || of_rows_.contains(value);
    return {.kind = has_rows ? CopyFormat::Kind::kColumns : CopyFormat::Kind::kPacked,
            .bits = bits,
            .group_rows = plan_.options.group_rows};
  }

  /// Where the copy of a value comes from.
  void find_copy(Value value) {
    if (plan_.imports_copy_of(value)) {
      return;
    }
    const PlanOptions& options = plan_.options;
    const int64_t fewest = demanded_.at(value);
    const auto maker = makers_.find(value);
    const Step* stage = maker == makers_.end() ? nullptr : maker->second;
    if (const auto pass = stage != nullptr ? stage->packs(value) : std::nullopt) {
      plan_.copies[value] = *pass;
    } else if (options.exact.contains(value)) {
      plan_.copies[value] = {.kind = CopyFormat::Kind::kExact};
    } else if (stage != nullptr && stage->copies_from_saved(value)) {
      plan_.recomputes.insert(value);
      if (const auto normalized = plan_.saves.find({value, Form::kNormalized}); normalized != plan_.saves.end()) {
        normalized->second.bits = options.bits_of(value, std::max(normalized->second.bits, fewest));
      }
    } else if (stage != nullptr && is_recomputed(*stage, value)) {
      plan_.recomputes.insert(value);
      for (const Value input : stage->copies_to_recompute()) {
        demand(input, fewest);
      }
    } else {
      const int64_t bits = stage != nullptr && is_sum(*stage, value) ? options.output_bits : options.bits;
      plan_.copies[value] = packed(value, options.bits_of(value, std::max(bits, fewest)));
    }
  }

  /// Views have no copies of their own, but for small parts of what has none; nor has what is rotated: channels that
  /// are large everywhere, as those of keys with biases are, have small ranges before. Of other linear steps the copy
  /// is computed again if it costs no product and the copies that it takes are there; a sum's is not, for it would have
  /// the noise of all that was ever added. What a norm computes again is.
  bool is_recomputed(const Step& stage, Value value) const {
    if (stage.is_view() || is_rotary(stage)) {
      return !is_small_part(stage);
    }
    if (!is_linear_in_copies(stage, plan_.options) || is_sum(stage, value)) {
      return false;
    }
    if (recomputed_products_.contains(value)) {
      return true;
    }
    const std::vector<Value> inputs = stage.copies_to_recompute();
    return stage.is_product() ? is_read_by_norm(value)
                              : std::all_of(inputs.begin(), inputs.end(), [&](Value input) { return has_copy(input); });
  }

  /// Whether backward reads less than half of what a step takes apart, and nothing else of it.
  bool is_small_part(const Step& stage) const {
    const auto* const split = dynamic_cast<const Split*>(&stage);
    if (split == nullptr || has_copy(split->inputs[0])) {
      return false;
    }
    int64_t read = 0;
    for (size_t part = 0; part < split->sizes.size(); ++part) {
      read += demanded_.contains(split->outputs[part]) ? split->sizes[part] : 0;
    }
    return 2 * read < std::accumulate(split->sizes.begin(), split->sizes.end(), int64_t{0});
  }

  bool is_read_by_norm(Value value) const {
    return std::any_of(plan_.stages.begin(), plan_.stages.end(), [&](const StepPointer& stage) {
      const std::vector<Need> needs = stage->needs(AllWanted());
      return stage->recomputes_inputs() && std::any_of(needs.begin(), needs.end(), [&](const Need& need) {
               return need.value == value && need.form == Form::kCopy;
             });
    });
  }

  bool has_copy(Value value) const {
    const auto maker = makers_.find(value);
    return demanded_.contains(value) || plan_.imports_copy_of(value) || plan_.options.exact.contains(value) ||
           (maker != makers_.end() && (maker->second->packs(value) || maker->second->copies_from_saved(value)));
  }

  Plan plan_;
  std::map<Value, const Step*> makers_;
  std::set<Value> recomputed_products_;
  std::set<Value> of_rows_;            // rows of channels where they are contiguous
  std::map<Value, int64_t> demanded_;  // values whose copies backward reads, and the fewest bits of them
};

void check_bits(const char* name, int64_t bits, int64_t fewest) {
  TORCH_CHECK_VALUE(bits >= fewest && bits <= kMaxBits, "block: ", name, " must be in ", fewest, "..8, got ", bits);
}

void check_group_rows(int64_t rows) {
  TORCH_CHECK_VALUE(is_group_rows(rows), "block: group_rows must be 64, 128 or 256, got ", rows);
}

/// A pass has the side of a kink beside its codes.
void check_import(const CopyFormat& format) {
  if (format.kind == CopyFormat::Kind::kExact) {
    return;
  }
  const int64_t side = format.kind == CopyFormat::Kind::kPass && has_kink(format.activation.function) ? 1 : 0;
  TORCH_CHECK_VALUE(format.bits >= kFewestCopyBits - side && format.bits <= kMaxBits - side,
                    "block: bits of an import must be in ", kFewestCopyBits - side, "..", kMaxBits - side, ", got ",
                    format.bits);
  check_group_rows(format.group_rows);
}

void check_options(const Program& program, const PlanOptions& options) {
  check_bits("bits", options.bits, kFewestCopyBits);
  check_bits("output_bits", options.output_bits, kFewestCopyBits);
  check_bits("smooth_bits", options.smooth_bits, kFewestCopyBits);
  check_bits("norm_bits", options.norm_bits, kMinBits);
  TORCH_CHECK_VALUE(options.attention_bits == 0 ||
                        (options.attention_bits >= kFewestAttentionBits && options.attention_bits <= kMaxBits),
                    "block: attention_bits must be in ", kFewestAttentionBits, "..8, or 0, got ",
                    options.attention_bits);
  check_group_rows(options.group_rows);
  for (const auto& [value, bits] : options.value_bits) {
    TORCH_CHECK_VALUE(value.number >= 0 && value.number < program.values(), "block: value_bits must name values in 0..",
                      program.values() - 1, ", got ", value.number);
    check_bits("value_bits", bits, kFewestCopyBits);
  }
  for (const Value value : options.exact) {
    TORCH_CHECK_VALUE(value.number >= 0 && value.number < program.values(), "block: exact must name values in 0..",
                      program.values() - 1, ", got ", value.number);
  }
}

}  // namespace

PlanOptions PlanOptions::of_bits(int64_t bits) {
  return {.bits = bits,
          .output_bits = bits,
          .smooth_bits = smooth_copy_bits(bits),
          .attention_bits = std::max(bits, kAttentionBits),
          .norm_bits = std::max(bits, kFewestCopyBits + 1) - 1};
}

int64_t PlanOptions::bits_of(Value value, int64_t otherwise) const {
  const auto own = value_bits.find(value);
  return own == value_bits.end() ? otherwise : own->second;
}

bool Plan::imports_copy_of(Value value) const {
  return std::any_of(imports.begin(), imports.end(), [&](const Import& import) { return import.input == value; });
}

CopyFormat Plan::saved_format(Value output) const {
  for (const Form form : {Form::kNormalized, Form::kDerivative}) {
    if (const auto found = saves.find({output, form}); found != saves.end()) {
      return found->second;
    }
  }
  return {.bits = options.bits};
}

Plan make_plan(Program program, const PlanOptions& options, std::vector<Import> imports) {
  check_program(program);
  check_options(program, options);
  Plan plan = Planner(std::move(program), options, std::move(imports)).plan();
  check_plan(plan);
  return plan;
}

void check_plan(const Plan& plan) {
  check_program(plan.program);
  std::set<Value> made;
  for (int64_t input = 0; input < plan.program.inputs; ++input) {
    made.insert({input});
  }
  for (const StepPointer& stage : plan.stages) {
    for (const Value input : stage->inputs) {
      TORCH_CHECK_VALUE(made.contains(input), "block: the plan's ", stage->name(), " reads value ", input.number,
                        ", which no stage before it makes");
    }
    made.insert(stage->outputs.begin(), stage->outputs.end());
  }
  for (const Value result : plan.program.results) {
    TORCH_CHECK_VALUE(made.contains(result), "block: no stage of the plan makes the result, value ", result.number);
  }
  for (const Import& import : plan.imports) {
    TORCH_CHECK_VALUE(import.input.number >= 0 && import.input.number < plan.program.inputs,
                      "block: imports must name inputs, got value ", import.input.number);
    check_import(import.format);
  }
  for (const Value value : plan.exports) {
    TORCH_CHECK_VALUE(plan.copies.contains(value), "block: the copy of value ", value.number,
                      " cannot be exported, for the plan saves none");
  }
  // Throws for a copy that is nowhere.
  make_schedule(plan, std::vector<bool>(plan.program.inputs + plan.program.parameters(), true), /*exports=*/true);
}

}  // namespace actnn::blocks
