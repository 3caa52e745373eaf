#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <memory>
#include <optional>
#include <vector>

#include "actnn/blocks/plan.h"
#include "actnn/blocks/program.h"
#include "src/blocks/fields.h"

/// \file
/// One step of a program: what all steps have in common. Each is a file of `steps/`, or, computed together with others
/// in one pass over memory, of `fusions/`.

namespace actnn::blocks {

class ForwardRun;
class BackwardRun;

using Sizes = std::vector<c10::SymInt>;

/// That backward needs a form of a value. Its tensors are `parts` in number, always the same for a step; of a copy the
/// planner knows.
struct Need {
  Value value;
  Form form;
  size_t parts = 1;
  std::optional<int64_t> bits = std::nullopt;  ///< none: the plan's for the value; of a copy, the fewest
};

/// Which gradients are wanted.
class Wants {
 public:
  virtual ~Wants() = default;
  virtual bool wants(Value value) const = 0;
  virtual bool wants(ParameterIndex index) const = 0;
  template <class Index>
  bool wants(const std::optional<Index>& index) const {
    return index && wants(*index);
  }
};

/// What a step is computed from.
class Operands {
 public:
  virtual ~Operands() = default;
  virtual at::Tensor value(Value value) = 0;
  /// ... in a dtype.
  virtual at::Tensor value(Value value, at::ScalarType dtype);
  /// In the dtype of the step's output if the step casts it (`Step::cast_parameters`), else as it is.
  virtual const at::Tensor& parameter(ParameterIndex index) const = 0;
  virtual at::ScalarType dtype(Value value) const = 0;
  virtual Layout layout(Value value) const = 0;
  virtual c10::SymInt integer(IntegerIndex index) const = 0;
  /// What the step saved of a value, while its output is computed again in backward.
  virtual const std::vector<at::Tensor>& saved(Value value, Form form) const = 0;

  std::optional<at::Tensor> parameter(const std::optional<ParameterIndex>& index) const {
    return index ? std::optional(parameter(*index)) : std::nullopt;
  }
  c10::SymInt extent(const Extent& extent) const;
  Sizes extents(const std::vector<Extent>& list) const;
};

/// Sizes of values and parameters, symbolic where the run's are.
class KnownSizes {
 public:
  virtual ~KnownSizes() = default;
  virtual const Sizes& sizes(Value value) const = 0;
  virtual c10::SymIntArrayRef sizes(ParameterIndex index) const = 0;
  virtual c10::SymInt integer(IntegerIndex index) const = 0;

  Sizes extents(const std::vector<Extent>& list) const;
};

/// How a step's values are stored.
enum class LayoutRule : int8_t {
  kChannels,     ///< inputs and outputs are [N, C, ...], channels innermost in memory
  kPlain,        ///< outputs are contiguous
  kHeads,        ///< outputs, and the first three inputs, have heads innermost
  kElementwise,  ///< all are stored alike
  kView,         ///< outputs show the input's memory
};

class Step {
 public:
  std::vector<Value> inputs;
  std::vector<Value> outputs = {};  ///< of a program's step consecutive; `Program::add` numbers them

  virtual ~Step() = default;
  Step() = default;
  Step(const Step&) = default;
  Step(Step&&) = default;
  Step& operator=(const Step&) = default;
  Step& operator=(Step&&) = default;

  /// "convolution"
  virtual const char* name() const = 0;
  virtual std::shared_ptr<Step> clone() const = 0;
  virtual void visit_fields(FieldVisitor& /*fields*/) {}
  virtual size_t output_count() const { return 1; }
  /// Throws c10::ValueError, with a sentence, for numbers of inputs and fields that make no sense.
  virtual void check() const {}

  /// Those that its fields name; of a pass, those of its steps.
  virtual std::vector<ParameterIndex> parameters() const;
  virtual LayoutRule layout_rule() const = 0;
  /// Of an elementwise step: the values that are stored alike.
  virtual std::vector<Value> stored_alike() const;
  /// Whether its values are rows of channels, [..., channels], where they are contiguous.
  virtual bool is_of_rows() const { return false; }
  /// Of each output.
  virtual std::vector<Sizes> infer_sizes(const KnownSizes& known) const = 0;
  /// Whether parameters do anything to an output.
  virtual bool depends_on_parameters(Value /*output*/) const { return true; }
  /// Parameters that are cast to the dtype of the first output, as autocast does.
  virtual std::vector<ParameterIndex> cast_parameters() const { return {}; }

  /// What backward reads, if a gradient of an output is there.
  virtual std::vector<Need> needs(const Wants& /*wants*/) const { return {}; }
  /// Whether the step of unbiased copies is an unbiased copy of its outputs: it is linear in the inputs that are not
  /// `exact`.
  virtual bool is_linear(const std::vector<bool>& /*exact*/) const { return false; }
  /// Whether it is a product of matrices or a convolution, which cost more to compute again than others.
  virtual bool is_product() const { return false; }
  /// Whether it moves elements only, so that the copy of its output is always made of those of its inputs.
  virtual bool is_view() const { return false; }
  /// The inputs whose copies `compute` reads where the output is computed again.
  virtual std::vector<Value> copies_to_recompute() const { return inputs; }
  /// What `compute` reads of saved tensors, besides the inputs' copies, where the output is computed again.
  virtual std::vector<Need> needs_to_recompute() const { return {}; }
  /// Whether the copy of an output is computed of what it saves (`needs_to_recompute`), and not of copies of its
  /// inputs, and that copy.
  virtual bool copies_from_saved(Value /*output*/) const { return false; }
  virtual at::Tensor copy_from_saved(BackwardRun& run, at::ScalarType dtype) const;
  /// Whether backward, which computes the gradient of the input, computes the copy of the output in the same pass.
  virtual bool gives_copy(BackwardRun& /*run*/) const { return false; }
  /// Whether the copies of inputs that it reads are to be computed again from those of their makers' inputs.
  virtual bool recomputes_inputs() const { return false; }
  /// The format of the copy that the step itself packs of one of its outputs; none: the executor packs it where one is
  /// needed.
  virtual std::optional<CopyFormat> packs(Value /*output*/) const { return std::nullopt; }

  /// Whether forward packs the copy of the first input in the pass that reads it, where `ForwardRun::packing` says so.
  virtual bool packs_input() const { return false; }

  /// The outputs. The tensors of inputs must stay as they are.
  virtual std::vector<at::Tensor> compute(Operands& operands) const = 0;
  /// Computes the outputs and saves what `needs` says and is not a copy that the executor packs.
  virtual void forward(ForwardRun& run) const;
  /// Takes the gradients of the outputs, one at least is there, and gives those of inputs and parameters that are
  /// wanted.
  virtual void backward(BackwardRun& run) const = 0;

  Value output() const { return outputs.front(); }
};

/// A step of which `Derived` has the fields, and a static `kName`.
template <class Derived>
class StepOf : public Step {
 public:
  const char* name() const override { return Derived::kName; }
  std::shared_ptr<Step> clone() const override { return std::make_shared<Derived>(static_cast<const Derived&>(*this)); }
};

/// A step that moves elements only.
template <class Derived>
class ViewOf : public StepOf<Derived> {
 public:
  bool is_linear(const std::vector<bool>& /*exact*/) const override { return true; }
  bool is_view() const override { return true; }
};

}  // namespace actnn::blocks
