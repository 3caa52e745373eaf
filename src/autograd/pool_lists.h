#pragma once

#include <cstdint>
#include <vector>

namespace actnn {

/// A list of a 1-D pooling as that of a 2-D pooling over a first spatial dimension of extent 1.
inline std::vector<int64_t> with_unit(const std::vector<int64_t>& list, int64_t unit) {
  return list.empty() ? list : std::vector<int64_t>{unit, list[0]};
}

}  // namespace actnn
