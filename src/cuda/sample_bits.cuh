#pragma once

#include "actnn/cuda/quantize.h"

/// \file
/// Where the codes of samples with bit widths of their own begin.

namespace actnn::cuda {

/// Written for a sample without codes: its width is not in 1..8, or its codes would end beyond the room.
inline constexpr int64_t kNoCodes = -1;

/// Fills `samples.code_offsets` for samples of `elements` elements; the last number is the end of all codes.
cudaError_t locate_codes(const SampleBits& samples, int64_t elements, cudaStream_t stream);

}  // namespace actnn::cuda
