#pragma once

#include <vector>

#include "src/blocks/step.h"

/// \file
/// Steps that give parts of a value along one dimension.

namespace actnn::blocks {

/// What splits and chunks share: parts behind one another, of extents that `Derived` knows.
template <class Derived>
struct PartsOf : ViewOf<Derived> {
  int64_t dimension = 0;

  /// Parts lie in memory as the value does.
  LayoutRule layout_rule() const override { return LayoutRule::kElementwise; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;
};

struct Split : PartsOf<Split> {
  static constexpr const char* kName = "split";

  std::vector<int64_t> sizes;

  void visit_fields(FieldVisitor& fields) override;
  size_t output_count() const override { return sizes.size(); }
  void check() const override;
  Sizes part_extents(const c10::SymInt& extent) const;
};

/// Parts of the same extent but for the last, which may be smaller.
struct Chunk : PartsOf<Chunk> {
  static constexpr const char* kName = "chunk";

  int64_t chunks = 0;

  void visit_fields(FieldVisitor& fields) override;
  size_t output_count() const override { return static_cast<size_t>(chunks); }
  void check() const override;
  Sizes part_extents(const c10::SymInt& extent) const;
};

/// All of a dimension, which the parts do not have.
struct Unbind : ViewOf<Unbind> {
  static constexpr const char* kName = "unbind";

  int64_t count = 0;
  int64_t dimension = 0;

  void visit_fields(FieldVisitor& fields) override;
  size_t output_count() const override { return static_cast<size_t>(count); }
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kView; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;
};

/// One of them.
struct Select : ViewOf<Select> {
  static constexpr const char* kName = "select";

  int64_t dimension = 0;
  int64_t index = 0;

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kView; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;
};

}  // namespace actnn::blocks
