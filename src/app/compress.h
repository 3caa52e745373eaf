#pragma once

#include <nlohmann/json.hpp>

#include "src/app/models.h"
#include "src/app/settings.h"

namespace actnn::app {

/// Runs residual blocks and transformer layers as blocks, unless `settings` want layers, and replaces the other layers
/// of `model` by layers that save their activations in `settings.bits` bits, keeping the weights. Returns what became
/// of each layer, for result.json.
nlohmann::json compress(Model& model, const Settings& settings);

}  // namespace actnn::app
