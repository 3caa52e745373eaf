#pragma once

#include <optional>
#include <string>
#include <vector>

#include "src/blocks/step.h"

namespace actnn::blocks {

/// Other spatial extents by interpolation, as torch.nn.functional.interpolate.
struct Upsample : StepOf<Upsample> {
  static constexpr const char* kName = "upsample";

  std::string mode;  ///< nearest, nearest-exact, linear, bilinear, bicubic, trilinear
  std::optional<std::vector<Extent>> size;
  std::optional<std::vector<double>> scale_factors;  ///< instead of `size`
  bool align_corners = false;                        ///< of the modes that are not nearest ones

  void visit_fields(FieldVisitor& fields) override;
  void check() const override;
  LayoutRule layout_rule() const override { return LayoutRule::kChannels; }
  std::vector<Sizes> infer_sizes(const KnownSizes& known) const override;
  bool is_linear(const std::vector<bool>& /*exact*/) const override { return true; }
  std::vector<at::Tensor> compute(Operands& operands) const override;
  void backward(BackwardRun& run) const override;

 private:
  size_t dimensions() const { return size ? size->size() : scale_factors->size(); }
  /// One entry a dimension; none where a size is given.
  std::vector<std::optional<double>> scales() const;
  /// The spatial extents of the output.
  template <class Source>
  Sizes extents(c10::SymIntArrayRef input, const Source& source) const;
};

}  // namespace actnn::blocks
