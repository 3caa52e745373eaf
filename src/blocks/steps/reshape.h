#pragma once

#include <vector>

#include "src/blocks/step.h"

/// \file
/// Steps that give a value's elements, in the same order, other sizes.

namespace actnn::blocks {

/// Whether both have rows of the same length, as many of them.
inline bool have_same_rows(const Sizes& before, const Sizes& after) {
  return !before.empty() && !after.empty() && before.back() == after.back();
}

/// `Derived` says which sizes.
template <class Derived>
struct ReshapeOf : ViewOf<Derived> {
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kPlain; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;
};

struct Reshape : ReshapeOf<Reshape> {
  static constexpr const char* kName = "reshape";

  std::vector<Extent> sizes;

  void visit_fields(FieldVisitor& fields) override { fields.required("sizes", sizes); }
  template <class Source>
  Sizes reshaped(const Sizes& input, const Source& source) const;
};

/// The dimensions from `start` to `end`, both included, become one.
struct Flatten : ReshapeOf<Flatten> {
  static constexpr const char* kName = "flatten";

  int64_t start = 0;
  int64_t end = -1;

  void visit_fields(FieldVisitor& fields) override;
  template <class Source>
  Sizes reshaped(const Sizes& input, const Source& source) const;
};

struct Unsqueeze : ReshapeOf<Unsqueeze> {
  static constexpr const char* kName = "unsqueeze";

  int64_t dimension = 0;

  void visit_fields(FieldVisitor& fields) override { fields.required("dimension", dimension); }
  template <class Source>
  Sizes reshaped(const Sizes& input, const Source& source) const;
};

/// Without the dimension, if its extent is 1.
struct Squeeze : ReshapeOf<Squeeze> {
  static constexpr const char* kName = "squeeze";

  int64_t dimension = 0;

  void visit_fields(FieldVisitor& fields) override { fields.required("dimension", dimension); }
  template <class Source>
  Sizes reshaped(const Sizes& input, const Source& source) const;
};

}  // namespace actnn::blocks
