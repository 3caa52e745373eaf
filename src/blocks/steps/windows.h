#pragma once

#include <initializer_list>
#include <vector>

#include "src/blocks/step.h"
#include "src/ops/window_count.h"

/// \file
/// What convolutions, pools and upsampling share: steps on values [N, C, ...] with 1 to 3 spatial dimensions.

namespace actnn::blocks {

/// A list of a step, one entry a spatial dimension.
struct SpatialList {
  const char* name;
  const std::vector<int64_t>& entries;
  int64_t least;
};

/// Throws c10::ValueError, with a sentence, unless all lists have the same number of entries, 1 to 3, which are not too
/// small.
void check_spatial_lists(const Step& step, std::initializer_list<SpatialList> lists);

/// Throws c10::ValueError, with a sentence, unless `size` is [N, C, ...] with this number of spatial dimensions.
void check_spatial_size(const Step& step, const Sizes& size, size_t dimensions);

/// How many places a window takes in an input of this extent. Throws c10::ValueError, with a sentence, if it does not
/// fit.
c10::SymInt count_windows(const Step& step, const c10::SymInt& input, const SlidingWindow<c10::SymInt>& window);

}  // namespace actnn::blocks
