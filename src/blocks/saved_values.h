#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "actnn/blocks/plan.h"
#include "src/blocks/schedule.h"

/// \file
/// Which packed tensors a run saves, and by which of the plan's options they have their bits.

namespace actnn::blocks {

/// A packed tensor among those that a run saves.
struct SavedValue {
  size_t tensor;     ///< its place among them
  Value value;       ///< whose elements it has, one code each
  Value named;       ///< as `PlanOptions::value_bits` names it
  int64_t bits;      ///< as `PlanOptions::value_bits` counts them
  int64_t side = 0;  ///< how many of those are none of the code
  int64_t fewest;    ///< bits with which the plan stays as it is, and readers that are not linear nearly unbiased
};

std::vector<SavedValue> saved_values(const Plan& plan, const Schedule& schedule);

}  // namespace actnn::blocks
