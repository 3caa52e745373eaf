#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "actnn/blocks/program.h"

/// \file
/// The fields of a step, named once: what reads them from JSON, writes them, lists them and collects the indices among
/// them is a visitor.

namespace actnn::blocks {

class FieldVisitor {
 public:
  virtual ~FieldVisitor() = default;

  virtual void visit(const char* name, bool& field, bool is_required) = 0;
  virtual void visit(const char* name, int64_t& field, bool is_required) = 0;
  virtual void visit(const char* name, double& field, bool is_required) = 0;
  virtual void visit(const char* name, std::string& field, bool is_required) = 0;
  virtual void visit(const char* name, std::optional<int64_t>& field, bool is_required) = 0;
  virtual void visit(const char* name, std::optional<double>& field, bool is_required) = 0;
  virtual void visit(const char* name, std::optional<std::string>& field, bool is_required) = 0;
  virtual void visit(const char* name, std::vector<int64_t>& field, bool is_required) = 0;
  virtual void visit(const char* name, std::optional<std::vector<double>>& field, bool is_required) = 0;
  virtual void visit(const char* name, std::vector<Extent>& field, bool is_required) = 0;
  virtual void visit(const char* name, std::optional<std::vector<Extent>>& field, bool is_required) = 0;
  virtual void visit(const char* name, ParameterIndex& field, bool is_required) = 0;
  virtual void visit(const char* name, std::optional<ParameterIndex>& field, bool is_required) = 0;
  virtual void visit(const char* name, std::optional<BufferIndex>& field, bool is_required) = 0;

  /// A field that must be given, and one whose value so far is its default.
  template <class Field>
  void required(const char* name, Field& field) {
    visit(name, field, true);
  }
  template <class Field>
  void optional(const char* name, Field& field) {
    visit(name, field, false);
  }
};

/// A visitor of which `Derived` has one template for all types: `field(name, field, is_required)`.
template <class Derived>
class FieldVisitorOf : public FieldVisitor {
 public:
  void visit(const char* name, bool& field, bool is_required) override { all(name, field, is_required); }
  void visit(const char* name, int64_t& field, bool is_required) override { all(name, field, is_required); }
  void visit(const char* name, double& field, bool is_required) override { all(name, field, is_required); }
  void visit(const char* name, std::string& field, bool is_required) override { all(name, field, is_required); }
  void visit(const char* name, std::optional<int64_t>& field, bool is_required) override {
    all(name, field, is_required);
  }
  void visit(const char* name, std::optional<double>& field, bool is_required) override {
    all(name, field, is_required);
  }
  void visit(const char* name, std::optional<std::string>& field, bool is_required) override {
    all(name, field, is_required);
  }
  void visit(const char* name, std::vector<int64_t>& field, bool is_required) override {
    all(name, field, is_required);
  }
  void visit(const char* name, std::optional<std::vector<double>>& field, bool is_required) override {
    all(name, field, is_required);
  }
  void visit(const char* name, std::vector<Extent>& field, bool is_required) override { all(name, field, is_required); }
  void visit(const char* name, std::optional<std::vector<Extent>>& field, bool is_required) override {
    all(name, field, is_required);
  }
  void visit(const char* name, ParameterIndex& field, bool is_required) override { all(name, field, is_required); }
  void visit(const char* name, std::optional<ParameterIndex>& field, bool is_required) override {
    all(name, field, is_required);
  }
  void visit(const char* name, std::optional<BufferIndex>& field, bool is_required) override {
    all(name, field, is_required);
  }

 private:
  template <class Field>
  void all(const char* name, Field& field, bool is_required) {
    static_cast<Derived&>(*this).field(name, field, is_required);
  }
};

}  // namespace actnn::blocks
