#include <c10/util/Exception.h>

#include <nlohmann/json.hpp>

#include "actnn/blocks/plan.h"
#include "src/ops/activation_names.h"

namespace actnn::blocks {
namespace {

using nlohmann::json;

json stage_to(const NormActStage& pass) {
  std::string name = pass.norm ? "batch_norm" : "";
  const auto append = [&](const char* part) { name += (name.empty() ? "" : " + ") + std::string(part); };
  if (pass.residual) {
    append("add");
  }
  const ActivationFunction function = pass.derivative.function;
  if (function != ActivationFunction::kLeakyReLU) {
    append(name_of(function));
  } else if (pass.slope != 1.0) {
    append(pass.slope == 0.0 ? "relu" : "leaky_relu");
  }
  json inputs = json::array({pass.input});
  if (pass.residual) {
    inputs.push_back(*pass.residual);
  }
  json stage{{"stage", name}, {"inputs", inputs}, {"output", pass.output}};
  if (pass.bits != 0) {
    stage["keeps"] = !gives_output(function) ? "normalized and derivative"
                     : pass.slope == 1.0     ? "copy"
                                             : "sides and copy";
    stage["bits"] = pass.bits;
  }
  if (pass.derivative.bits != 0) {
    if (pass.bits == 0) {
      stage["keeps"] = "derivative";
    }
    stage["derivative_bits"] = pass.derivative.bits;
  }
  if (pass.norm_bits != 0) {
    stage["normalized_bits"] = pass.norm_bits;
  }
  if (pass.norm && pass.norm->group_name) {
    stage["group_name"] = *pass.norm->group_name;
  }
  if (pass.recompute) {
    stage["recomputes"] = pass.input;
  }
  return stage;
}

json stage_to(const ConvolutionStage& stage) {
  return {{"stage", "convolution"}, {"inputs", {stage.convolution.input}}, {"output", stage.output}};
}

json stage_to(const ActivationStage& stage) {
  return {{"stage", "activation"},
          {"inputs", {stage.activation.input}},
          {"output", stage.output},
          {"keeps", stage.bits == 0 ? "mask" : "derivative"},
          {"bits", stage.bits == 0 ? 1 : stage.bits}};
}

json stage_to(const MaxPoolStage& stage) {
  return {{"stage", "max_pool"}, {"inputs", {stage.pool.input}}, {"output", stage.output}, {"keeps", "positions"}};
}

}  // namespace

PlanOptions plan_options_from_json(const std::string& text) {
  PlanOptions options;
  try {
    const json parsed = json::parse(text);
    for (const auto& [key, value] : parsed.items()) {
      if (key == "bits") {
        options.bits = value;
      } else if (key == "output_bits") {
        options.output_bits = value;
      } else if (key == "recompute") {
        options.recompute = value;
      } else if (key == "norm_bits") {
        options.norm_bits = value;
      } else if (key == "stochastic") {
        options.stochastic = value;
      } else if (key == "value_bits") {
        for (const auto& [name, bits] : value.items()) {
          options.value_bits[std::stoll(name)] = bits;
        }
      } else {
        C10_THROW_ERROR(ValueError,
                        "block: an option of plans must be bits, output_bits, recompute, norm_bits, stochastic or "
                        "value_bits, got \"" +
                            key + "\"");
      }
    }
  } catch (const json::exception& error) {
    C10_THROW_ERROR(ValueError, std::string("block: not options of a plan: ") + error.what());
  } catch (const std::invalid_argument&) {
    C10_THROW_ERROR(ValueError, "block: value_bits must name values by their numbers");
  }
  return options;
}

std::string to_json(const Plan& plan) {
  json stages = json::array();
  for (const auto& [value, bits] : plan.packed_values) {
    stages.push_back({{"stage", "copy"}, {"inputs", {value}}, {"keeps", "copy"}, {"bits", bits}});
  }
  for (const Stage& stage : plan.stages) {
    stages.push_back(std::visit([](const auto& kind) { return stage_to(kind); }, stage));
  }
  return stages.dump();
}

}  // namespace actnn::blocks
