#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "src/blocks/copy_format.h"
#include "src/blocks/gradient.h"
#include "src/blocks/step.h"
#include "src/ops/rows.h"

/// \file
/// What a step sees of a run: values, parameters, what is saved, gradients.

namespace actnn::blocks {

/// Forward, as a step sees it. `value` is undefined once all readers have run.
class ForwardRun : public Operands, public Wants {
 public:
  virtual void set(Value value, at::Tensor tensor) = 0;
  virtual std::optional<at::Tensor> buffer(const std::optional<BufferIndex>& index) const = 0;
  /// Whether a form of a value must be saved in this run, and the saving of it.
  virtual bool saves(Value value, Form form) const = 0;
  virtual void save(Value value, Form form, std::vector<at::Tensor> tensors) = 0;
  /// How the step packs the copy of an input, which it saves then (`Step::packs_input`); none: the executor does.
  virtual std::optional<ColumnQuantization> packing(Value value) const = 0;
  virtual Rounding rounding() const = 0;  ///< of copies
  /// Of what the step saves of an output besides its copy: a normalized value, a derivative.
  virtual CopyFormat saved_format(Value output) const = 0;
  /// Another dtype in which products read an output, and the output in it, where the step has both at once.
  virtual std::optional<at::ScalarType> second_dtype(Value output) const = 0;
  virtual void set_second(Value output, at::Tensor tensor) = 0;

 private:
  /// Forward has not saved anything that its own steps read.
  const std::vector<at::Tensor>& saved(Value value, Form form) const final;
};

/// Backward, as a step sees it.
class BackwardRun : public Wants {
 public:
  /// The gradient of an output; whoever takes it owns it. Undefined if nobody gave one.
  virtual Gradient take(Value value) = 0;
  /// Adds to the gradient of an input, or of a parameter; of any floating dtype.
  void add(Value value, at::Tensor gradient) { add(value, SummedGradient{std::move(gradient), {}}); }
  virtual void add(Value value, SummedGradient gradient) = 0;
  /// Whether the step that made a value, or what it shows the rows of, asks for the sums of its gradient:
  /// `SummedGradient` then has them.
  virtual bool reads_sums(Value value) const = 0;
  /// The gradient of an input so far, or a part of it, to be added to in place and given back by `add`: none if there
  /// is none of this dtype yet, or others see it.
  virtual std::optional<at::Tensor> take_owned(Value value, at::ScalarType dtype) = 0;
  virtual void add(ParameterIndex index, at::Tensor gradient) = 0;
  /// Adds the sum over all dimensions but the last, which may be made later, in one pass with those of other steps.
  virtual void add_sum_of_rows(ParameterIndex index, const at::Tensor& rows) = 0;

  /// An unbiased copy, the caller's own if nobody reads it later.
  at::Tensor copy(Value value) { return copy(value, dtype(value)); }
  /// ... in this dtype.
  virtual at::Tensor copy(Value value, at::ScalarType dtype) = 0;
  /// Calls `use` with the copy: at once, or, if the step that made the value has it from its own backward for less
  /// (`Step::gives_copy`), then.
  virtual void with_copy(Value value, at::ScalarType dtype, std::function<void(const at::Tensor&)> use) = 0;
  /// Whether somebody waits for the copy of an output so, and the giving of it.
  virtual bool is_awaited(Value value) const = 0;
  virtual void give_copy(Value value, const at::Tensor& copy) = 0;
  /// A copy as it is packed, if it is one of rows in columns, in a dtype that it may be unpacked in, which nobody has
  /// unpacked, and there is a pass that unpacks it: `can_activate_packed_rows`.
  virtual std::optional<PackedRows> packed_rows(Value value, at::ScalarType dtype) = 0;
  virtual const std::vector<at::Tensor>& saved(Value value, Form form) const = 0;
  virtual bool has_saved(Value value, Form form) const = 0;
  /// As `Operands::parameter`.
  virtual const at::Tensor& parameter(ParameterIndex index) const = 0;
  virtual at::ScalarType dtype(Value value) const = 0;
  virtual const Sizes& sizes(Value value) const = 0;
  virtual Layout layout(Value value) const = 0;
  virtual CopyFormat saved_format(Value output) const = 0;
  /// What is packed of an output besides its copy, in its dtype: a normalized value, a derivative. In this dtype.
  at::Tensor unpacked_form(Value output, Form form, at::ScalarType wanted) const;

  std::optional<at::Tensor> parameter(const std::optional<ParameterIndex>& index) const {
    return index ? std::optional(parameter(*index)) : std::nullopt;
  }
  /// Strides of the value where it is dense in its layout; of a view, where what it shows is.
  virtual std::vector<c10::SymInt> strides(Value value) const = 0;
  /// The gradient in one tensor, in the layout of the value; undefined if there is none.
  at::Tensor take_joined(Value value);
};

}  // namespace actnn::blocks
