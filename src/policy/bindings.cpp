/// The policy as torch classes, `torch.classes.actnn`: what a language other than C++ uses.

#include <torch/custom_class.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "actnn/policy/gradient_noise.h"
#include "actnn/policy/policy.h"
#include "actnn/policy/scheme.h"
#include "src/ops/rounding_names.h"

namespace actnn {
namespace {

using PolicyPointer = c10::intrusive_ptr<Policy>;
using SchemePointer = c10::intrusive_ptr<Scheme>;
using OptionalTensor = std::optional<at::Tensor>;

OptionalTensor if_defined(const at::Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }

/// A plan as the arguments of an op: bits, group_size, rounding, sample_bits, total_bits, compress, simulate,
/// offload.
using PlanTuple = std::tuple<int64_t, int64_t, std::string, OptionalTensor, int64_t, bool, bool, bool>;

PlanTuple plan(const SchemePointer& self, const at::Tensor& input) {
  Plan plan = self->plan(input);
  const auto& [quantization, retention] = plan;
  return {quantization.bits,
          quantization.group_size,
          name_of(quantization.rounding),
          retention.sample_bits,
          retention.total_bits.guard_int(__FILE__, __LINE__),
          retention.compress,
          retention.simulate,
          retention.offload};
}

SchemePointer make_scheme(const PolicyPointer& policy, bool normalization, int64_t group, int64_t num_locations,
                          int64_t depthwise_groups, int64_t channel_dim, std::string name) {
  return Scheme::create(policy, {normalization, group, num_locations, depthwise_groups, channel_dim, std::move(name)});
}

c10::Dict<std::string, at::Tensor> state(const SchemePointer& self) {
  c10::Dict<std::string, at::Tensor> dict;
  for (const auto& [key, value] : self->state()) {
    dict.insert(key, value);
  }
  return dict;
}

void load_state(const SchemePointer& self, const c10::Dict<std::string, at::Tensor>& dict) {
  std::map<std::string, at::Tensor> state;
  for (const auto& entry : dict) {
    state[entry.key()] = entry.value();
  }
  self->load_state(state);
}

struct GradientNoiseHolder : torch::CustomClassHolder {
  GradientNoise noise;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  // Both before the methods of either, whose signatures name them.
  auto policy = m.class_<Policy>("Policy");
  auto scheme = m.class_<Scheme>("Scheme");
  policy.def(torch::init([](const std::string& level) { return c10::make_intrusive<Policy>(config_for_level(level)); }))
      .def("get_flag",
           [](const PolicyPointer& self, const std::string& name) { return get_flag(self->config(), name); })
      .def("set_flag", [](const PolicyPointer& self, const std::string& name,
                          const c10::IValue& value) { set_flag(self->config(), name, value); })
      .def("set_batch", [](const PolicyPointer& self, OptionalTensor indices) { self->set_batch(std::move(indices)); })
      .def("batch", [](const PolicyPointer& self) { return self->batch(); })
      .def("set_num_samples", &Policy::set_num_samples)
      .def("num_samples", [](const PolicyPointer& self) { return self->num_samples(); })
      .def("set_update_scale", [](const PolicyPointer& self, bool update) { self->set_update_scale(update); })
      .def("update_scale", [](const PolicyPointer& self) { return self->update_scale(); })
      .def("schemes", [](const PolicyPointer& self) { return self->schemes(); })
      .def("previous",
           [](const PolicyPointer& self) {
             auto previous = self->previous();
             return previous ? std::optional(previous) : std::nullopt;
           })
      .def("allocate_per_layer", &Policy::allocate_per_layer)
      .def("predicted_noise", [](const PolicyPointer& self) { return self->predicted_noise(); })
      .def("set_noise_correction", &Policy::set_noise_correction)
      .def("noise_correction", [](const PolicyPointer& self) { return self->noise_correction(); });

  scheme.def(torch::init(make_scheme))
      .def("plan", plan)
      .def("observe", &Scheme::observe)
      .def("bits", [](const SchemePointer& self) { return self->bits(); })
      .def("set_bits", &Scheme::set_bits)
      .def("scales", [](const SchemePointer& self) { return if_defined(self->scales()); })
      .def("sensitivity", [](const SchemePointer& self) { return if_defined(self->sensitivity()); })
      .def("dim", [](const SchemePointer& self) { return self->dim(); })
      .def("num_locations", [](const SchemePointer& self) { return self->options().num_locations; })
      .def("depthwise_groups", [](const SchemePointer& self) { return self->options().depthwise_groups; })
      .def("group", [](const SchemePointer& self) { return self->options().group; })
      .def("normalization", [](const SchemePointer& self) { return self->options().normalization; })
      .def("name", [](const SchemePointer& self) { return self->options().name; })
      .def("state", state)
      .def("load_state", load_state);

  m.class_<GradientNoiseHolder>("GradientNoise")
      .def(torch::init<>())
      .def("add", [](const c10::intrusive_ptr<GradientNoiseHolder>& self,
                     const std::vector<at::Tensor>& gradients) { self->noise.add(gradients); })
      .def("variance", [](const c10::intrusive_ptr<GradientNoiseHolder>& self) { return self->noise.variance(); })
      .def("squared_norm",
           [](const c10::intrusive_ptr<GradientNoiseHolder>& self) { return self->noise.squared_norm(); })
      .def("noise", [](const c10::intrusive_ptr<GradientNoiseHolder>& self) { return self->noise.noise(); });

  m.def("config_flags() -> str[]", config_flags);
  m.def("level_names() -> str[]", level_names);
  m.def("allocator_setting(str level) -> str",
        [](const std::string& level) { return std::string(allocator_setting(level)); });
}

}  // namespace actnn
