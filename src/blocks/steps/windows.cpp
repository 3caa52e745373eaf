#include "src/blocks/steps/windows.h"

#include <c10/util/Exception.h>

namespace actnn::blocks {

void check_spatial_lists(const Step& step, std::initializer_list<SpatialList> lists) {
  const size_t dimensions = lists.begin()->entries.size();
  TORCH_CHECK_VALUE(dimensions >= 1 && dimensions <= 3, "block: ", step.name(), " must have a ", lists.begin()->name,
                    " of 1 to 3 entries, got ", dimensions);
  for (const auto& [name, entries, least] : lists) {
    TORCH_CHECK_VALUE(entries.size() == dimensions, "block: ", step.name(), " must have a ", name, " of ", dimensions,
                      dimensions == 1 ? " entry" : " entries", ", got ", entries.size());
    for (const int64_t entry : entries) {
      TORCH_CHECK_VALUE(entry >= least, "block: ", step.name(), " must have a ", name, " of at least ", least, ", got ",
                        entry);
    }
  }
}

void check_spatial_size(const Step& step, const Sizes& size, size_t dimensions) {
  TORCH_CHECK_VALUE(size.size() == dimensions + 2, "block: ", step.name(), " must have an input [N, C, ...] with ",
                    dimensions, " spatial dimensions, got shape ", c10::SymIntArrayRef(size));
}

c10::SymInt count_windows(const Step& step, const c10::SymInt& input, const SlidingWindow<c10::SymInt>& window) {
  c10::SymInt count = window_count(input, window);
  TORCH_CHECK_VALUE(count > 0, "block: ", step.name(), " must have an input that its window fits in, got extent ",
                    input, ", kernel_size ", window.kernel_size, ", dilation ", window.dilation, ", padding ",
                    window.padding);
  return count;
}

}  // namespace actnn::blocks
