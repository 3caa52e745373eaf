/// Blocks as a class of torch's, `torch.classes.actnn.Block`: what a language other than C++ uses.

#include <torch/custom_class.h>

#include <string>
#include <utility>
#include <vector>

#include "actnn/blocks/block.h"

namespace actnn::blocks {
namespace {

struct BlockHolder : torch::CustomClassHolder {
  BlockHolder(const std::string& program, std::string options_)
      : block(program_from_json(program), plan_options_from_json(options_)), options(std::move(options_)) {}

  Block block;
  std::string options;
};

using Pointer = c10::intrusive_ptr<BlockHolder>;

at::Tensor run(const Pointer& self, const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& parameters,
               const std::vector<at::Tensor>& buffers, const c10::List<bool>& batch_statistics) {
  return self->block.run(inputs, parameters, buffers, {batch_statistics.begin(), batch_statistics.end()});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.class_<BlockHolder>("Block")
      .def(torch::init<const std::string&, std::string>())
      .def("run", run)
      .def("plan", [](const Pointer& self) { return to_json(self->block.plan()); })
      .def("program", [](const Pointer& self) { return to_json(self->block.plan().program); })
      .def("options", [](const Pointer& self) { return self->options; })
      .def("kept_bytes", [](const Pointer& self) { return self->block.kept_bytes(); })
      .def_pickle(
          [](const Pointer& self) {
            return std::vector<std::string>{to_json(self->block.plan().program), self->options};
          },
          [](const std::vector<std::string>& state) {
            return c10::make_intrusive<BlockHolder>(state.at(0), state.at(1));
          });
}

}  // namespace actnn::blocks
