#pragma once

#include <torch/nn/modules/container/sequential.h>

#include <nlohmann/json.hpp>

#include "src/app/settings.h"

namespace actnn::app {

/// Runs residual blocks as blocks, unless `settings` want layers, and replaces the other layers of `model` by layers
/// that save their activations in `settings.bits` bits, keeping the weights. Returns what became of each layer, for
/// result.json.
nlohmann::json compress(torch::nn::Sequential& model, const Settings& settings);

}  // namespace actnn::app
