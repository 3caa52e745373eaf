#include "src/blocks/steps/rms_norm.h"

#include "src/blocks/registry.h"
#include "src/blocks/steps/broadcast.h"
#include "src/blocks/steps/last_dimensions.h"

namespace actnn::blocks {

void RmsNorm::visit_fields(FieldVisitor& fields) {
  fields.optional("weight", weight);
  fields.required("dimensions", dimensions);
  fields.optional("eps", eps);
}

void RmsNorm::check() const {
  check_inputs(*this, 1);
  check_dimensions(*this, dimensions);
}

namespace {
const RegisterStep<RmsNorm> kRmsNormStep;
}

}  // namespace actnn::blocks
