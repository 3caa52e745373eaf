#pragma once

#include <vector>

#include "actnn/blocks/program.h"

namespace actnn::blocks {

/// What a step names in a run's lists.
struct Indices {
  std::vector<ParameterIndex> parameters;
  std::vector<BufferIndex> buffers;
  std::vector<IntegerIndex> integers;
};

/// From its fields.
Indices indices_of(const Step& step);

}  // namespace actnn::blocks
