#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <torch/serialize/archive.h>

#include <map>
#include <string>

#include "actnn/autograd/retention.h"
#include "actnn/nn/quantized_module.h"

/// \file
/// A layer and its scheme.

namespace actnn::nn {

/// `op(quantization, retention)`, with what the layer's scheme plans for `input`, or with the layer's own quantization.
/// `wants_copy`: whether the op will keep the input if a graph is recorded.
template <class Op>
at::Tensor planned(QuantizedModule& layer, const at::Tensor& input, bool wants_copy, const Op& op) {
  Scheme* const scheme = layer.scheme().get();
  if (!scheme || !wants_copy || !at::GradMode::is_enabled()) {
    return op(layer.quantization(), Retention{});
  }
  const Plan plan = scheme->plan(input);
  at::Tensor output = op(plan.quantization, plan.retention);
  scheme->observe(output);
  return output;
}

/// The scheme's state beside the layer's own in an archive, where layers without one do not look.
inline constexpr const char* kSchemePrefix = "actnn_";

inline void save_scheme(torch::serialize::OutputArchive& archive, const QuantizedModule& layer) {
  if (layer.scheme()) {
    for (const auto& [key, value] : layer.scheme()->state()) {
      archive.write(kSchemePrefix + key, value, /*is_buffer=*/true);
    }
  }
}

/// Nothing happens if the archive is of a model without schemes.
inline void load_scheme(torch::serialize::InputArchive& archive, const QuantizedModule& layer) {
  if (!layer.scheme()) {
    return;
  }
  std::map<std::string, at::Tensor> state;
  for (const std::string key : {"bits", "scales"}) {
    at::Tensor value;
    if (archive.try_read(kSchemePrefix + key, value, /*is_buffer=*/true)) {
      state[key] = value;
    }
  }
  if (!state.empty()) {
    layer.scheme()->load_state(state);
  }
}

}  // namespace actnn::nn
