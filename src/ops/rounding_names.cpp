#include "src/ops/rounding_names.h"

#include <c10/util/Exception.h>

namespace actnn {

const char* name_of(Rounding rounding) {
  switch (rounding) {
    case Rounding::kStochastic:
      return "stochastic";
    case Rounding::kNearest:
      return "nearest";
    case Rounding::kDithered:
      break;
  }
  return "dithered";
}

Rounding rounding_of(const char* op, std::string_view name) {
  for (const Rounding rounding : {Rounding::kDithered, Rounding::kStochastic, Rounding::kNearest}) {
    if (name == name_of(rounding)) {
      return rounding;
    }
  }
  C10_THROW_ERROR(ValueError,
                  c10::str(op, ": rounding must be \"dithered\", \"stochastic\" or \"nearest\", got \"", name, "\""));
}

}  // namespace actnn
