#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "src/blocks/step.h"

/// \file
/// All steps that a program may have, by name.

namespace actnn::blocks {

using MakeStep = std::function<std::shared_ptr<Step>()>;

/// Registered by `StepRegistration`, before main.
const std::map<std::string, MakeStep>& step_registry();

/// The steps and their fields: {"linear": {"weight": {"required": true, "names": "parameter"}, ...}, ...}.
std::string steps_to_json();

class StepRegistration {
 public:
  StepRegistration(const char* name, MakeStep make);
};

/// At the end of a step's source: `const RegisterStep<Convolution> kConvolution;`
template <class Kind>
class RegisterStep : StepRegistration {
 public:
  RegisterStep() : StepRegistration(Kind::kName, [] { return std::make_shared<Kind>(); }) {}
};

}  // namespace actnn::blocks
