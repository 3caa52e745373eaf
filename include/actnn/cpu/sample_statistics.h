#pragma once

#include <cstdint>

#include "actnn/core/scalar_types.h"

/// \file
/// Sums over one sample that decide how many bits it gets (Chen et al., "ActNN", ICML 2021, section 4). Sums of double
/// precision in a fixed order: the same result for every number of threads.

namespace actnn::cpu {

/// The sum over groups of (largest - smallest)^2; the difference is rounded to float. NaN if an element is NaN.
float group_range_square_sum(const void* elements, ElementType type, int64_t count, int64_t group_size);

/// The sum of squares.
float square_norm(const void* elements, ElementType type, int64_t count);

}  // namespace actnn::cpu
