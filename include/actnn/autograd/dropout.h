#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace actnn {

/// Dropout that saves 16 bytes for backward: its mask is a function of the random state and is recomputed.
///
/// In training each element is kept with probability 1 - `probability` and then scaled by 1 / (1 - probability);
/// otherwise the input is returned. The mask depends only on the state and on an element's position in storage order,
/// but is not the mask that torch's dropout draws from the same seed. `probability` in [0, 1].
at::Tensor dropout(const at::Tensor& input, double probability, bool training,
                   const std::optional<at::Tensor>& rng_state = std::nullopt);

/// The same in place.
at::Tensor& dropout_(at::Tensor& input, double probability, bool training,
                     const std::optional<at::Tensor>& rng_state = std::nullopt);

}  // namespace actnn
