#pragma once

#include <cstdint>

/// \file
/// Bits for the samples of a batch (Chen et al., "ActNN", ICML 2021, section 4.2).

namespace actnn::cpu {

/// From `initial` bits for each of the `samples`, takes the `excess` cheapest decrements (all of them, if there are
/// fewer): the greedy answer. `bits`: [samples], 1..8.
void allocate_sample_bits(const float* sensitivity, int64_t samples, int initial, int64_t excess, uint8_t* bits);

}  // namespace actnn::cpu
