#pragma once

#include <algorithm>
#include <cstdint>

#include "actnn/cuda/quantize.h"
#include "src/cuda/launch.cuh"

/// \file
/// How the warps of a kernel share samples with bit widths of their own, and where the samples' codes begin.

namespace actnn::cuda {

/// Written for a sample without codes: its width is not in 1..8, or its codes would end beyond the room.
inline constexpr int64_t kNoCodes = -1;

/// Fills `samples.code_offsets` for samples of `elements` elements; the last number is the end of all codes.
cudaError_t locate_codes(const SampleBits& samples, int64_t elements, cudaStream_t stream);

/// Which part of which sample a warp takes.
class SampleParts {
 public:
  SampleParts(int64_t parts, int64_t samples)
      : parts_(static_cast<uint32_t>(parts)),
        samples_(samples),
        divide_(static_cast<uint32_t>(std::max<int64_t>(1, parts))) {}

  /// Warps in all.
  int64_t warps() const { return samples_ * parts_; }

  /// Calls body(sample, part) in the warps that have one.
  template <class Body>
  __device__ void for_warp(Body&& body) const {
    const auto warp = static_cast<uint32_t>(warp_index());
    const uint32_t sample = divide_(warp);
    if (sample < samples_) {
      body(sample, int64_t{warp - sample * parts_});
    }
  }

 private:
  uint32_t parts_;
  int64_t samples_;
  Divider divide_;
};

}  // namespace actnn::cuda
