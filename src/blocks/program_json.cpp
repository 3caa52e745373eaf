#include <c10/util/Exception.h>

#include <array>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "actnn/blocks/program.h"
#include "src/blocks/overloaded.h"

namespace actnn::blocks {
namespace {

using nlohmann::json;

constexpr std::array<std::pair<const char*, ActivationKind>, 5> kKinds{{{"relu", ActivationKind::kReLU},
                                                                        {"relu6", ActivationKind::kReLU6},
                                                                        {"leaky_relu", ActivationKind::kLeakyReLU},
                                                                        {"silu", ActivationKind::kSiLU},
                                                                        {"hardswish", ActivationKind::kHardswish}}};

const char* name_of(ActivationKind kind) { return kKinds.at(static_cast<size_t>(kind)).first; }

ActivationKind kind_of(const std::string& name) {
  for (const auto& [known, kind] : kKinds) {
    if (name == known) {
      return kind;
    }
  }
  C10_THROW_ERROR(ValueError,
                  "block: an activation must be relu, relu6, leaky_relu, silu or hardswish, got \"" + name + "\"");
}

std::optional<Index> place(const json& list, size_t entry) {
  return entry >= list.size() || list[entry].is_null() ? std::nullopt : std::optional(list[entry].get<Index>());
}

json to_list(std::initializer_list<std::optional<Index>> places) {
  json list = json::array();
  for (const auto& entry : places) {
    list.push_back(entry ? json(*entry) : json());
  }
  return list;
}

Step step_from(const json& step) {
  const auto op = step.at("op").get<std::string>();
  const auto inputs = step.at("inputs").get<std::vector<Value>>();
  TORCH_CHECK_VALUE(inputs.size() == (op == "add" ? 2 : 1), "block: ", op, " must have ", op == "add" ? "2" : "1",
                    " inputs, got ", inputs.size());
  if (op == "convolution") {
    const json& parameters = step.at("parameters");
    TORCH_CHECK_VALUE(place(parameters, 0), "block: a convolution must have a weight");
    return Convolution{.input = inputs[0],
                       .weight = *place(parameters, 0),
                       .bias = place(parameters, 1),
                       .stride = step.at("stride"),
                       .padding = step.at("padding"),
                       .dilation = step.at("dilation"),
                       .groups = step.value("groups", int64_t{1})};
  }
  if (op == "batch_norm") {
    const json parameters = step.value("parameters", json::array());
    const json buffers = step.value("buffers", json::array());
    const json momentum = step.value("momentum", json());
    const json group_name = step.value("group_name", json());
    return BatchNorm{.input = inputs[0],
                     .weight = place(parameters, 0),
                     .bias = place(parameters, 1),
                     .running_mean = place(buffers, 0),
                     .running_var = place(buffers, 1),
                     .num_batches_tracked = place(buffers, 2),
                     .momentum = momentum.is_null() ? std::nullopt : std::optional(momentum.get<double>()),
                     .eps = step.at("eps"),
                     .group_name = group_name.is_null() ? std::nullopt : std::optional(group_name.get<std::string>())};
  }
  if (op == "activation") {
    return Activation{inputs[0], kind_of(step.at("kind")), step.value("slope", 0.01)};
  }
  if (op == "add") {
    return Add{inputs[0], inputs[1]};
  }
  if (op == "max_pool") {
    return MaxPool{inputs[0],
                   {.kernel_size = step.at("kernel_size"),
                    .stride = step.at("stride"),
                    .padding = step.at("padding"),
                    .dilation = step.at("dilation"),
                    .ceil_mode = step.at("ceil_mode")}};
  }
  C10_THROW_ERROR(ValueError,
                  "block: a step must be convolution, batch_norm, activation, add or max_pool, got \"" + op + "\"");
}

json step_to(const Step& step) {
  json written = std::visit(
      Overloaded{[](const Convolution& convolution) -> json {
                   return {{"op", "convolution"},
                           {"parameters", to_list({convolution.weight, convolution.bias})},
                           {"stride", convolution.stride},
                           {"padding", convolution.padding},
                           {"dilation", convolution.dilation},
                           {"groups", convolution.groups}};
                 },
                 [](const BatchNorm& norm) -> json {
                   json result{{"op", "batch_norm"},
                               {"parameters", to_list({norm.weight, norm.bias})},
                               {"buffers", to_list({norm.running_mean, norm.running_var, norm.num_batches_tracked})},
                               {"momentum", norm.momentum ? json(*norm.momentum) : json()},
                               {"eps", norm.eps}};
                   if (norm.group_name) {
                     result["group_name"] = *norm.group_name;
                   }
                   return result;
                 },
                 [](const Activation& activation) -> json {
                   json result{{"op", "activation"}, {"kind", name_of(activation.kind)}};
                   if (activation.kind == ActivationKind::kLeakyReLU) {
                     result["slope"] = activation.slope;
                   }
                   return result;
                 },
                 [](const Add&) -> json {
                   return {{"op", "add"}};
                 },
                 [](const MaxPool& pool) -> json {
                   return {{"op", "max_pool"},
                           {"kernel_size", pool.window.kernel_size},
                           {"stride", pool.window.stride},
                           {"padding", pool.window.padding},
                           {"dilation", pool.window.dilation},
                           {"ceil_mode", pool.window.ceil_mode}};
                 }},
      step);
  written["inputs"] = operands(step);
  return written;
}

}  // namespace

std::string to_json(const Program& program) {
  json steps = json::array();
  for (const Step& step : program.steps) {
    steps.push_back(step_to(step));
  }
  return json{{"inputs", program.inputs}, {"steps", steps}}.dump();
}

Program program_from_json(const std::string& text) {
  Program program;
  try {
    const json parsed = json::parse(text);
    program.inputs = parsed.at("inputs");
    for (const json& step : parsed.at("steps")) {
      program.add(step_from(step));
    }
    const Value output = parsed.value("output", program.output());
    TORCH_CHECK_VALUE(output == program.output(), "block: the result must be what the last step makes, value ",
                      program.output(), ", got ", output);
  } catch (const json::exception& error) {
    C10_THROW_ERROR(ValueError, std::string("block: not a program: ") + error.what());
  }
  check_program(program);
  return program;
}

}  // namespace actnn::blocks
