#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "src/blocks/json.h"
#include "src/blocks/schedule.h"
#include "src/ops/activation_names.h"
#include "src/ops/rounding_names.h"

namespace actnn::blocks {
namespace {

using nlohmann::json;

const char* form_name(Form form) {
  switch (form) {
    case Form::kCopy:
      return "copy";
    case Form::kExact:
      return "exact";
    case Form::kNormalized:
      return "normalized";
    case Form::kDerivative:
      return "derivative";
    case Form::kMask:
      return "mask";
    case Form::kPositions:
      return "positions";
    case Form::kRandomState:
      return "random state";
    case Form::kStatistics:
      return "statistics";
  }
  return "";
}

const char* layout_name(Layout layout) {
  switch (layout) {
    case Layout::kPlain:
      return "plain";
    case Layout::kChannels:
      return "channels";
    case Layout::kHeads:
      return "heads";
    case Layout::kStrided:
      return "strided";
  }
  return "";
}

constexpr std::array<std::pair<const char*, CopyFormat::Kind>, 4> kCopyKinds{{{"packed", CopyFormat::Kind::kPacked},
                                                                              {"columns", CopyFormat::Kind::kColumns},
                                                                              {"pass", CopyFormat::Kind::kPass},
                                                                              {"exact", CopyFormat::Kind::kExact}}};

void add_group_rows(json& written, const CopyFormat& format) {
  if (format.kind == CopyFormat::Kind::kColumns) {
    written["group_rows"] = format.group_rows;
  }
}

json to_json_object(const CopyFormat& format) {
  json written{{"kind", kCopyKinds.at(static_cast<size_t>(format.kind)).first}, {"bits", format.bits}};
  if (format.kind == CopyFormat::Kind::kPass) {
    written["activation"] = actnn::name_of(format.activation.function);
    written["slope"] = format.activation.slope;
  }
  add_group_rows(written, format);
  return written;
}

CopyFormat copy_format_from_json(const json& written) {
  check_keys("a copy", written, {"kind", "bits", "group_rows", "activation", "slope"});
  for (const auto& [name, kind] : kCopyKinds) {
    if (written.at("kind") == name) {
      return {.kind = kind,
              .bits = written.at("bits"),
              .group_rows = written.value("group_rows", kDefaultGroupRows),
              .activation = fused_activation("block", written.value("activation", std::string("identity")),
                                             written.value("slope", 0.0))};
    }
  }
  TORCH_CHECK_VALUE(false, "block: a copy must be packed, columns, pass or exact, got ", written.at("kind").dump());
}

PlanOptions options_from_json(const json& written) {
  check_keys("options", written,
             {"bits", "output_bits", "smooth_bits", "attention_bits", "recompute_attention", "recompute_mlp",
              "group_rows", "recompute", "norm_bits", "rounding", "value_bits", "exact"});
  PlanOptions options = PlanOptions::of_bits(written.value("bits", PlanOptions{}.bits));
  options.output_bits = written.value("output_bits", options.output_bits);
  options.smooth_bits = written.value("smooth_bits", options.smooth_bits);
  options.attention_bits = written.value("attention_bits", options.attention_bits);
  options.recompute_attention = written.value("recompute_attention", options.recompute_attention);
  options.recompute_mlp = written.value("recompute_mlp", options.recompute_mlp);
  options.group_rows = written.value("group_rows", options.group_rows);
  options.recompute = written.value("recompute", options.recompute);
  options.norm_bits = written.value("norm_bits", options.norm_bits);
  options.rounding = rounding_of("block", written.value("rounding", std::string(name_of(options.rounding))));
  const json value_bits = written.value("value_bits", json::object());
  for (const auto& [value, bits] : value_bits.items()) {
    options.value_bits[{json::parse(value).get<int64_t>()}] = bits;
  }
  for (const json& value : written.value("exact", json::array())) {
    options.exact.insert({value.get<int64_t>()});
  }
  return options;
}

void add_format(json& written, const CopyFormat& format) {
  written["bits"] = format.bits + mask_count(format.activation.function);
  add_group_rows(written, format);
}

json save_to_json(const Plan& plan, Value value, Form form) {
  json written{{"value", value.number}, {"form", form_name(form)}};
  if (const std::optional<size_t> maker = plan.program.maker(value)) {
    written["step"] = *maker;
  }
  if (form == Form::kCopy) {
    const CopyFormat& format = plan.copies.at(value);
    if (format.kind == CopyFormat::Kind::kExact) {
      written["form"] = form_name(Form::kExact);
    } else {
      add_format(written, format);
    }
  } else if (const auto format = plan.saves.find({value, form}); format != plan.saves.end()) {
    add_format(written, format->second);
  }
  return written;
}

}  // namespace

std::string to_json(const Plan& plan) {
  const Program& program = plan.program;
  const Schedule schedule =
      make_schedule(plan, std::vector<bool>(program.inputs + program.parameters(), true), /*exports=*/true);
  json written{
      {"saves", json::array()}, {"recomputes", json::array()}, {"fusions", json::array()}, {"copies", json::object()}};
  for (const auto& [key, slot] : schedule.slots) {
    written["saves"].push_back(save_to_json(plan, key.first, key.second));
  }
  for (const Value value : plan.recomputes) {
    written["recomputes"].push_back(value.number);
  }
  for (const Fusion& fusion : plan.fusions) {
    written["fusions"].push_back({{"name", fusion.name}, {"steps", fusion.steps}});
  }
  for (const auto& [value, format] : plan.copies) {
    const bool is_result = std::find(program.results.begin(), program.results.end(), value) != program.results.end();
    if (is_result || value.number < program.inputs) {
      written["copies"][std::to_string(value.number)] = {{"copy", to_json_object(format)},
                                                         {"tensors", format.parts()},
                                                         {"layout", layout_name(plan.layouts[value.number])}};
    }
  }
  return written.dump();
}

Plan plan_from_json(const std::string& text) {
  try {
    const json written = json::parse(text);
    check_keys("the text of a program", written, {"program", "options", "imports", "exports", "name"});
    std::vector<Import> imports;
    for (const json& import : written.value("imports", json::array())) {
      check_keys("an import", import, {"input", "copy"});
      imports.push_back({{import.at("input").get<int64_t>()}, copy_format_from_json(import.at("copy"))});
    }
    Plan plan = make_plan(program_from_json_object(written.at("program")),
                          options_from_json(written.value("options", json::object())), std::move(imports));
    plan.exports = Json<std::vector<Value>>::read(written.value("exports", json::array()));
    plan.name = written.value("name", std::string());
    check_plan(plan);
    return plan;
  } catch (const json::exception& error) {
    C10_THROW_ERROR(ValueError, std::string("block: not a program: ") + error.what());
  }
}

}  // namespace actnn::blocks
