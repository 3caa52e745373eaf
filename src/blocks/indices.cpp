#include "src/blocks/indices.h"

#include <type_traits>

#include "src/blocks/step.h"

namespace actnn::blocks {
namespace {

class IndexCollector : public FieldVisitorOf<IndexCollector> {
 public:
  Indices found;

  template <class Field>
  void field(const char* /*name*/, const Field& field, bool /*is_required*/) {
    collect(field);
  }

 private:
  void collect(ParameterIndex index) { found.parameters.push_back(index); }
  void collect(BufferIndex index) { found.buffers.push_back(index); }
  void collect(IntegerIndex index) { found.integers.push_back(index); }
  void collect(const Extent& extent) {
    if (const auto* integer = std::get_if<IntegerIndex>(&extent)) {
      collect(*integer);
    }
  }
  template <class Field>
  void collect(const std::optional<Field>& field) {
    if (field) {
      collect(*field);
    }
  }
  void collect(const std::vector<Extent>& list) {
    for (const Extent& extent : list) {
      collect(extent);
    }
  }
  template <class Other>
  requires std::is_arithmetic_v<Other>
  void collect(Other /*number*/) {}
  void collect(const std::string& /*text*/) {}
  void collect(const std::vector<int64_t>& /*numbers*/) {}
  void collect(const std::vector<double>& /*numbers*/) {}
};

}  // namespace

Indices indices_of(const Step& step) {
  IndexCollector collector;
  step.clone()->visit_fields(collector);
  return collector.found;
}

}  // namespace actnn::blocks
