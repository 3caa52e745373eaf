#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/container/sequential.h>

#include <string>
#include <unordered_set>
#include <vector>

#include "actnn/nn/conversion_report.h"

namespace actnn::nn {

/// Makes chains of layers of actnn::nn that stand in a row. Returns them, or one entry with the reason why there are
/// none. `skipped`: modules to leave alone.
std::vector<ChainEntry> make_chains(const std::string& path, torch::nn::SequentialImpl& sequential,
                                    const std::unordered_set<const torch::nn::Module*>& skipped);

}  // namespace actnn::nn
