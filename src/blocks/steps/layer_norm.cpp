#include "src/blocks/steps/layer_norm.h"

#include "src/blocks/registry.h"
#include "src/blocks/steps/broadcast.h"
#include "src/blocks/steps/last_dimensions.h"

namespace actnn::blocks {

void LayerNorm::visit_fields(FieldVisitor& fields) {
  fields.optional("weight", weight);
  fields.optional("bias", bias);
  fields.required("dimensions", dimensions);
  fields.required("eps", eps);
}

void LayerNorm::check() const {
  check_inputs(*this, 1);
  check_dimensions(*this, dimensions);
}

namespace {
const RegisterStep<LayerNorm> kLayerNormStep;
}

}  // namespace actnn::blocks
