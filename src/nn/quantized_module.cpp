#include "actnn/nn/quantized_module.h"

#include <utility>

namespace actnn::nn {
namespace {

c10::intrusive_ptr<Scheme> copy_of(const c10::intrusive_ptr<Scheme>& scheme) {
  if (!scheme) {
    return {};
  }
  auto copy = Scheme::create(scheme->policy(), scheme->options());
  copy->load_state(scheme->state());
  return copy;
}

}  // namespace

QuantizedModule::QuantizedModule(const QuantizedModule& other) : scheme_(copy_of(other.scheme_)) {}

QuantizedModule& QuantizedModule::operator=(const QuantizedModule& other) {
  if (this != &other) {
    scheme_ = copy_of(other.scheme_);
  }
  return *this;
}

void QuantizedModule::set_policy(const c10::intrusive_ptr<Policy>& policy, int64_t group, const std::string& name) {
  scheme_ = {};
  if (!policy) {
    return;
  }
  if (auto options = scheme_options()) {
    options->group = group;
    options->name = name;
    scheme_ = Scheme::create(policy, *options);
  } else {
    const Quantization configured = fixed_plan(policy->config(), group).quantization;
    quantization() = {configured.bits, policy->config().group_size, configured.rounding};
  }
}

}  // namespace actnn::nn
