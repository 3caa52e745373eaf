#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "actnn/blocks/program.h"

/// \file
/// Values of fields as JSON, and back, by type. `read` throws nlohmann's exceptions for other types.

namespace actnn::blocks {

template <class Field>
struct Json {
  static Field read(const nlohmann::json& json) { return json.get<Field>(); }
  static nlohmann::json write(const Field& field) { return field; }
};

template <class List>
struct Json<Index<List>> {
  static Index<List> read(const nlohmann::json& json) { return {json.get<int64_t>()}; }
  static nlohmann::json write(const Index<List>& index) { return index.number; }
};

/// A number, or {"integer": place}.
template <>
struct Json<Extent> {
  static Extent read(const nlohmann::json& json) {
    return json.is_object() ? Extent(IntegerIndex{json.at("integer").get<int64_t>()}) : Extent(json.get<int64_t>());
  }
  static nlohmann::json write(const Extent& extent) {
    const auto* integer = std::get_if<IntegerIndex>(&extent);
    return integer != nullptr ? nlohmann::json{{"integer", integer->number}}
                              : nlohmann::json(std::get<int64_t>(extent));
  }
};

template <class Entry>
struct Json<std::vector<Entry>> {
  static std::vector<Entry> read(const nlohmann::json& json) {
    const auto& entries = json.get_ref<const nlohmann::json::array_t&>();  // throws for what is no list
    std::vector<Entry> list;
    std::transform(entries.begin(), entries.end(), std::back_inserter(list), Json<Entry>::read);
    return list;
  }
  static nlohmann::json write(const std::vector<Entry>& list) {
    nlohmann::json json = nlohmann::json::array();
    std::transform(list.begin(), list.end(), std::back_inserter(json), Json<Entry>::write);
    return json;
  }
};

/// null for none.
template <class Field>
struct Json<std::optional<Field>> {
  static std::optional<Field> read(const nlohmann::json& json) {
    return json.is_null() ? std::nullopt : std::optional(Json<Field>::read(json));
  }
  static nlohmann::json write(const std::optional<Field>& field) {
    return field ? Json<Field>::write(*field) : nlohmann::json();
  }
};

/// Throws c10::ValueError for a key of `json` that is not among `known`; `what` has them: "options".
void check_keys(const char* what, const nlohmann::json& json, std::initializer_list<const char*> known);

nlohmann::json to_json_object(const Program& program);
Program program_from_json_object(const nlohmann::json& json);

}  // namespace actnn::blocks
