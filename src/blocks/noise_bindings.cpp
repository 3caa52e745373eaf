/// The measurement of blocks as a torch class, `torch.classes.actnn.BlockNoise`: what a language other than C++ uses.

#include <torch/custom_class.h>

#include <string>
#include <tuple>
#include <vector>

#include "actnn/blocks/noise.h"

namespace actnn::blocks {
namespace {

using Pointer = c10::intrusive_ptr<BlockNoise>;

/// (block, value, bits, fewest, most, elements, sensitivity)
using ValueTuple = std::tuple<std::string, int64_t, int64_t, int64_t, int64_t, int64_t, double>;

std::vector<ValueTuple> values(const Pointer& self) {
  std::vector<ValueTuple> tuples;
  for (const ValueNoise& value : self->values()) {
    tuples.emplace_back(value.block, value.value.number, value.bits, value.fewest, value.most, value.elements,
                        value.sensitivity);
  }
  return tuples;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.class_<BlockNoise>("BlockNoise")
      .def(torch::init<>())
      .def("start", [](const Pointer& self, const std::vector<std::string>& prefixes) { return self->start(prefixes); })
      .def("cancel", &BlockNoise::cancel)
      .def("finish",
           [](const Pointer& self, const std::vector<at::Tensor>& gradients) { return self->finish(gradients); })
      .def("passes", [](const Pointer& self) { return self->passes(); })
      .def("values", values)
      .def("squared_norm", [](const Pointer& self) { return self->squared_norm(); })
      .def("noise", [](const Pointer& self, const std::vector<int64_t>& bits) { return self->noise(bits); })
      .def("kept_bytes", [](const Pointer& self, const std::vector<int64_t>& bits) { return self->kept_bytes(bits); })
      .def("bits_for_noise", [](const Pointer& self, double noise) { return self->bits_for_noise(noise); })
      .def("bits_for_bytes", [](const Pointer& self, int64_t bytes) { return self->bits_for_bytes(bytes); });
}

}  // namespace actnn::blocks
