#pragma once

#include <vector>

#include "actnn/blocks/plan.h"

namespace actnn::blocks {

/// How each value of a program is stored: as the steps that make and read it want it, and, between elementwise steps,
/// as its neighbours.
std::vector<Layout> infer_layouts(const Program& program);

}  // namespace actnn::blocks
