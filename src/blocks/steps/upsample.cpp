#include "src/blocks/steps/upsample.h"

#include <ATen/ops/_upsample_nearest_exact1d.h>
#include <ATen/ops/_upsample_nearest_exact1d_backward.h>
#include <ATen/ops/_upsample_nearest_exact2d.h>
#include <ATen/ops/_upsample_nearest_exact2d_backward.h>
#include <ATen/ops/_upsample_nearest_exact3d.h>
#include <ATen/ops/_upsample_nearest_exact3d_backward.h>
#include <ATen/ops/upsample_bicubic2d.h>
#include <ATen/ops/upsample_bicubic2d_backward.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/upsample_bilinear2d_backward.h>
#include <ATen/ops/upsample_linear1d.h>
#include <ATen/ops/upsample_linear1d_backward.h>
#include <ATen/ops/upsample_nearest1d.h>
#include <ATen/ops/upsample_nearest1d_backward.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <ATen/ops/upsample_nearest2d_backward.h>
#include <ATen/ops/upsample_nearest3d.h>
#include <ATen/ops/upsample_nearest3d_backward.h>
#include <ATen/ops/upsample_trilinear3d.h>
#include <ATen/ops/upsample_trilinear3d_backward.h>
#include <c10/core/SymFloat.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "src/blocks/registry.h"
#include "src/blocks/run.h"
#include "src/blocks/steps/broadcast.h"
#include "src/blocks/steps/windows.h"
#include "src/ops/tensors.h"

namespace actnn::blocks {
namespace {

using Scales = std::vector<std::optional<double>>;

/// Calls one of torch's ops, which take as many scales as there are dimensions, and `align_corners` unless they are
/// nearest ones.
template <class Op, size_t kDimensions, bool kAligns, class... UpsampleSizes>
at::Tensor call_upsample(const at::Tensor& tensor, bool align_corners, const Scales& scales, UpsampleSizes... sizes) {
  const auto with_scales = [&](auto... align) {
    if constexpr (kDimensions == 1) {
      return Op::call(tensor, sizes..., align..., scales[0]);
    } else if constexpr (kDimensions == 2) {
      return Op::call(tensor, sizes..., align..., scales[0], scales[1]);
    } else {
      return Op::call(tensor, sizes..., align..., scales[0], scales[1], scales[2]);
    }
  };
  if constexpr (kAligns) {
    return with_scales(align_corners);
  } else {
    return with_scales();
  }
}

struct Interpolation {
  const char* mode;
  size_t dimensions;
  bool aligns;
  at::Tensor (*forward)(const at::Tensor& input, bool align_corners, const Scales& scales, c10::SymIntArrayRef size);
  at::Tensor (*backward)(const at::Tensor& grad, bool align_corners, const Scales& scales, c10::SymIntArrayRef size,
                         c10::SymIntArrayRef input_size);
};

template <class Forward, class Backward, size_t kDimensions, bool kAligns>
constexpr Interpolation interpolation(const char* mode) {
  return {mode, kDimensions, kAligns, call_upsample<Forward, kDimensions, kAligns, c10::SymIntArrayRef>,
          call_upsample<Backward, kDimensions, kAligns, c10::SymIntArrayRef, c10::SymIntArrayRef>};
}

namespace ops = at::_ops;

constexpr std::array kInterpolations{
    interpolation<ops::upsample_nearest1d, ops::upsample_nearest1d_backward, 1, false>("nearest"),
    interpolation<ops::upsample_nearest2d, ops::upsample_nearest2d_backward, 2, false>("nearest"),
    interpolation<ops::upsample_nearest3d, ops::upsample_nearest3d_backward, 3, false>("nearest"),
    interpolation<ops::_upsample_nearest_exact1d, ops::_upsample_nearest_exact1d_backward, 1, false>("nearest-exact"),
    interpolation<ops::_upsample_nearest_exact2d, ops::_upsample_nearest_exact2d_backward, 2, false>("nearest-exact"),
    interpolation<ops::_upsample_nearest_exact3d, ops::_upsample_nearest_exact3d_backward, 3, false>("nearest-exact"),
    interpolation<ops::upsample_linear1d, ops::upsample_linear1d_backward, 1, true>("linear"),
    interpolation<ops::upsample_bilinear2d, ops::upsample_bilinear2d_backward, 2, true>("bilinear"),
    interpolation<ops::upsample_bicubic2d, ops::upsample_bicubic2d_backward, 2, true>("bicubic"),
    interpolation<ops::upsample_trilinear3d, ops::upsample_trilinear3d_backward, 3, true>("trilinear"),
};

const Interpolation& find_interpolation(const std::string& mode, size_t dimensions) {
  const auto* found =
      std::find_if(kInterpolations.begin(), kInterpolations.end(), [&](const Interpolation& interpolation) {
        return interpolation.mode == mode && interpolation.dimensions == dimensions;
      });
  TORCH_CHECK_VALUE(found != kInterpolations.end(), "block: upsample must have a mode that torch knows for ",
                    dimensions, dimensions == 1 ? " dimension" : " dimensions", ", got \"", mode, "\"");
  return *found;
}

c10::SymInt scaled(const c10::SymInt& extent, double scale) {
  const c10::SymFloat product = extent * scale;
  return product.is_symbolic() ? c10::SymInt(product.toSymNodeImpl()->floor())
                               : c10::SymInt(static_cast<int64_t>(std::floor(product.expect_float())));
}

}  // namespace

void Upsample::visit_fields(FieldVisitor& fields) {
  fields.required("mode", mode);
  fields.optional("size", size);
  fields.optional("scale_factors", scale_factors);
  fields.optional("align_corners", align_corners);
}

void Upsample::check() const {
  check_inputs(*this, 1);
  TORCH_CHECK_VALUE(size.has_value() != scale_factors.has_value(),
                    "block: upsample must have either a size or scale factors, got ", size ? "both" : "neither");
  const bool aligns = find_interpolation(mode, dimensions()).aligns;
  TORCH_CHECK_VALUE(aligns || !align_corners, "block: upsample must have align_corners false in mode \"", mode, "\"");
}

Scales Upsample::scales() const {
  return scale_factors ? Scales(scale_factors->begin(), scale_factors->end()) : Scales(dimensions(), std::nullopt);
}

template <class Source>
Sizes Upsample::extents(c10::SymIntArrayRef input, const Source& source) const {
  if (size) {
    return source.extents(*size);
  }
  Sizes extents;
  for (size_t d = 0; d < scale_factors->size(); ++d) {
    extents.push_back(scaled(input[d + 2], (*scale_factors)[d]));
  }
  return extents;
}

std::vector<Sizes> Upsample::infer_sizes(const KnownSizes& known) const {
  const Sizes& input = known.sizes(inputs[0]);
  check_spatial_size(*this, input, dimensions());
  Sizes output{input[0], input[1]};
  const Sizes spatial = extents(input, known);
  output.insert(output.end(), spatial.begin(), spatial.end());
  return {output};
}

std::vector<at::Tensor> Upsample::compute(Operands& operands) const {
  const at::Tensor input = with_dtype(operands.value(inputs[0]), operands.dtype(output()));
  return {find_interpolation(mode, dimensions())
              .forward(input, align_corners, scales(), extents(input.sym_sizes(), operands))};
}

void Upsample::backward(BackwardRun& run) const {
  const at::Tensor grad = run.take_joined(output());
  if (run.wants(inputs[0])) {
    run.add(inputs[0], find_interpolation(mode, dimensions())
                           .backward(grad, align_corners, scales(), grad.sym_sizes().slice(2), run.sizes(inputs[0])));
  }
}

namespace {
const RegisterStep<Upsample> kUpsampleStep;
}

}  // namespace actnn::blocks
