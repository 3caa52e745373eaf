#include "src/blocks/registry.h"

#include <utility>

namespace actnn::blocks {
namespace {

std::map<std::string, MakeStep>& steps() {
  static std::map<std::string, MakeStep> registered;
  return registered;
}

}  // namespace

const std::map<std::string, MakeStep>& step_registry() { return steps(); }

StepRegistration::StepRegistration(const char* name, MakeStep make) { steps().emplace(name, std::move(make)); }

}  // namespace actnn::blocks
