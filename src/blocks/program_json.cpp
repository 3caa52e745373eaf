#include <ATen/core/ScalarType.h>

#include <array>
#include <set>
#include <utility>

#include "src/blocks/json.h"
#include "src/blocks/registry.h"

namespace actnn::blocks {
namespace {

using nlohmann::json;

constexpr std::array<std::pair<const char*, at::ScalarType>, 5> kDtypes{{{"float32", at::kFloat},
                                                                         {"float16", at::kHalf},
                                                                         {"bfloat16", at::kBFloat16},
                                                                         {"bool", at::kBool},
                                                                         {"int64", at::kLong}}};

at::ScalarType dtype_from_json(const json& name) {
  for (const auto& [known, dtype] : kDtypes) {
    if (name == known) {
      return dtype;
    }
  }
  C10_THROW_ERROR(ValueError, "block: a dtype must be float32, float16, bfloat16, bool or int64, got " + name.dump());
}

json dtype_to_json(at::ScalarType dtype) {
  for (const auto& [name, known] : kDtypes) {
    if (dtype == known) {
      return name;
    }
  }
  C10_THROW_ERROR(ValueError, std::string("block: a value must be float32, float16, bfloat16, bool or int64, got ") +
                                  c10::toString(dtype));
}

class FieldReader : public FieldVisitorOf<FieldReader> {
 public:
  FieldReader(const json& step, const char* op) : step_(step), op_(op) {}

  template <class Field>
  void field(const char* name, Field& field, bool is_required) {
    known_.insert(name);
    const auto found = step_.find(name);
    if (found == step_.end()) {
      TORCH_CHECK_VALUE(!is_required, "block: ", op_, " must have a field \"", name, "\"");
      return;
    }
    try {
      field = Json<Field>::read(*found);
    } catch (const json::exception& error) {
      TORCH_CHECK_VALUE(false, "block: ", op_, " cannot have \"", name, "\": ", found->dump(), ": ", error.what());
    }
  }

  void check_all_known() const {
    for (const auto& [name, value] : step_.items()) {
      TORCH_CHECK_VALUE(name == "op" || name == "inputs" || known_.contains(name), "block: ", op_, " has no field \"",
                        name, "\"");
    }
  }

 private:
  const json& step_;
  const char* op_;
  std::set<std::string> known_;
};

class FieldWriter : public FieldVisitorOf<FieldWriter> {
 public:
  explicit FieldWriter(json& step) : step_(step) {}

  template <class Field>
  void field(const char* name, const Field& field, bool /*is_required*/) {
    step_[name] = Json<Field>::write(field);
  }

 private:
  json& step_;
};

/// Names of fields, what they name, and their defaults.
class FieldLister : public FieldVisitorOf<FieldLister> {
 public:
  json fields = json::object();

  template <class Field>
  void field(const char* name, const Field& field, bool is_required) {
    json& entry = fields[name] = {{"required", is_required}};
    if (!is_required) {
      entry["default"] = Json<Field>::write(field);
    }
    if constexpr (std::is_same_v<Field, ParameterIndex> || std::is_same_v<Field, std::optional<ParameterIndex>>) {
      entry["names"] = "parameter";
    } else if constexpr (std::is_same_v<Field, std::optional<BufferIndex>>) {
      entry["names"] = "buffer";
    }
  }
};

std::string names_of_steps() {
  std::string names;
  for (const auto& [name, make] : step_registry()) {
    names += (names.empty() ? "" : ", ") + name;
  }
  return names;
}

std::shared_ptr<Step> step_from(const json& written) {
  const auto op = written.at("op").get<std::string>();
  const auto make = step_registry().find(op);
  TORCH_CHECK_VALUE(make != step_registry().end(), "block: a step must be one of ", names_of_steps(), ", got \"", op,
                    "\"");
  std::shared_ptr<Step> step = make->second();
  step->inputs = Json<std::vector<Value>>::read(written.at("inputs"));
  FieldReader reader(written, step->name());
  step->visit_fields(reader);
  reader.check_all_known();
  return step;
}

json to_json_object(const Step& step) {
  json written{{"op", step.name()}, {"inputs", Json<std::vector<Value>>::write(step.inputs)}};
  FieldWriter writer(written);
  step.clone()->visit_fields(writer);
  return written;
}

}  // namespace

void check_keys(const char* what, const json& object, std::initializer_list<const char*> known) {
  TORCH_CHECK_VALUE(object.is_object(), "block: ", what, " must be an object, got ", object.dump());
  for (const auto& [name, value] : object.items()) {
    TORCH_CHECK_VALUE(std::find(known.begin(), known.end(), name) != known.end(), "block: ", what, " has no \"", name,
                      "\"");
  }
}

json to_json_object(const Program& program) {
  json steps = json::array();
  for (const StepPointer& step : program.steps) {
    steps.push_back(to_json_object(*step));
  }
  json written{{"inputs", program.inputs},
               {"integers", program.integers},
               {"steps", steps},
               {"results", Json<std::vector<Value>>::write(program.results)}};
  if (!program.dtypes.empty()) {
    std::transform(program.dtypes.begin(), program.dtypes.end(), std::back_inserter(written["dtypes"]), dtype_to_json);
  }
  return written;
}

Program program_from_json_object(const json& written) {
  check_keys("a program", written, {"inputs", "integers", "steps", "results", "dtypes"});
  Program program;
  program.inputs = written.at("inputs");
  program.integers = written.value("integers", int64_t{0});
  for (const json& step : written.at("steps")) {
    program.add(step_from(step));
  }
  program.results = Json<std::vector<Value>>::read(written.at("results"));
  const json dtypes = written.value("dtypes", json::array());
  std::transform(dtypes.begin(), dtypes.end(), std::back_inserter(program.dtypes), dtype_from_json);
  check_program(program);
  return program;
}

std::string to_json(const Program& program) { return to_json_object(program).dump(); }

Program program_from_json(const std::string& text) {
  try {
    return program_from_json_object(json::parse(text));
  } catch (const json::exception& error) {
    C10_THROW_ERROR(ValueError, std::string("block: not a program: ") + error.what());
  }
}

std::string steps_to_json() {
  json steps = json::object();
  for (const auto& [name, make] : step_registry()) {
    FieldLister lister;
    make()->visit_fields(lister);
    steps[name] = std::move(lister.fields);
  }
  return steps.dump();
}

}  // namespace actnn::blocks
