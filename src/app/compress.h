#pragma once

#include <torch/nn/modules/container/sequential.h>

#include <cstdint>
#include <nlohmann/json.hpp>

namespace actnn::app {

/// Replaces the layers of `model` by layers that save their activations in `bits` bits, keeping the weights. Returns
/// what became of each layer, for result.json.
nlohmann::json compress(torch::nn::Sequential& model, int64_t bits);

}  // namespace actnn::app
