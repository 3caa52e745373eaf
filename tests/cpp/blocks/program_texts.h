#pragma once

#include <string>

/// \file
/// Programs as JSON that several tests plan and run.

namespace actnn::blocks {

/// conv, norm, relu, conv, norm, add to the input, relu. Values: 1 conv, 2 norm, 3 relu, 4 conv, 5 norm, 6 sum, 7 relu.
/// Parameters: 0 and 3 weights of convolutions, 1 2 4 5 of norms. Buffers: 0 and 1, 2 and 3 running statistics.
inline const std::string kResidualBlock = R"({"inputs": 1, "results": [7], "steps": [
    {"op": "convolution", "inputs": [0], "weight": 0, "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]},
    {"op": "batch_norm", "inputs": [1], "weight": 1, "bias": 2, "running_mean": 0, "running_var": 1},
    {"op": "activation", "inputs": [2], "kind": "relu"},
    {"op": "convolution", "inputs": [3], "weight": 3, "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]},
    {"op": "batch_norm", "inputs": [4], "weight": 4, "bias": 5, "running_mean": 2, "running_var": 3},
    {"op": "add", "inputs": [5, 0]},
    {"op": "activation", "inputs": [6], "kind": "relu"}]})";

/// Two convolutions of what a concatenation puts side by side: 1 gelu of the input, 2 both, 3 and 4 the results.
inline const std::string kConcatenation = R"({"inputs": 1, "results": [3, 4], "steps": [
    {"op": "activation", "inputs": [0], "kind": "gelu"},
    {"op": "concatenate", "inputs": [0, 1], "dimension": 1},
    {"op": "convolution", "inputs": [2], "weight": 0, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]},
    {"op": "convolution", "inputs": [2], "weight": 1, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]}]})";

}  // namespace actnn::blocks
