#include "src/blocks/gradient.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/add.h>

#include <utility>

namespace actnn::blocks {

bool is_owned(const at::Tensor& tensor) {
  return tensor.use_count() == 1 && tensor.storage().use_count() == 1 &&
         at::has_internal_overlap(tensor) != at::MemOverlap::Yes;
}

void Gradient::add(at::Tensor part, at::Tensor sums_of_part) {
  sums = first.defined() ? at::Tensor() : std::move(sums_of_part);
  if (!first.defined()) {
    first = std::move(part);
  } else if (!second.defined()) {
    second = std::move(part);
  } else {
    join();
    second = std::move(part);
  }
}

void Gradient::join() {
  if (second.defined()) {
    if (!is_owned(first) || first.scalar_type() != second.scalar_type()) {
      std::swap(first, second);
    }
    first =
        is_owned(first) && first.scalar_type() == second.scalar_type() ? first.add_(second) : at::add(first, second);
    second.reset();
  }
}

std::optional<at::Tensor> Gradient::take_owned(at::ScalarType dtype) {
  for (at::Tensor* const part : {&second, &first}) {
    if (part->defined() && part->scalar_type() == dtype && is_owned(*part)) {
      at::Tensor taken = std::move(*part);
      if (part == &first) {
        first = std::move(second);
      }
      second.reset();
      sums.reset();
      return taken;
    }
  }
  return std::nullopt;
}

}  // namespace actnn::blocks
