#include "src/blocks/steps/batch_norm.h"

#include <c10/util/Exception.h>

#include "src/blocks/registry.h"
#include "src/blocks/steps/broadcast.h"

namespace actnn::blocks {

void BatchNorm::visit_fields(FieldVisitor& fields) {
  fields.optional("weight", weight);
  fields.optional("bias", bias);
  fields.optional("running_mean", running_mean);
  fields.optional("running_var", running_var);
  fields.optional("num_batches_tracked", num_batches_tracked);
  fields.optional("training", training);
  fields.optional("momentum", momentum);
  fields.optional("eps", eps);
  fields.optional("group_name", group_name);
}

void BatchNorm::check() const {
  check_inputs(*this, 1);
  TORCH_CHECK_VALUE(running_mean.has_value() == running_var.has_value(),
                    "block: batch_norm must have both a running mean and a running variance, or none");
  TORCH_CHECK_VALUE(training || running_mean,
                    "block: batch_norm must take batch statistics, for it has no running ones");
  TORCH_CHECK_VALUE(momentum || num_batches_tracked || !running_mean,
                    "block: batch_norm has no momentum, and no num_batches_tracked that would stand for it");
}

std::vector<at::Tensor> BatchNorm::compute(Operands& /*operands*/) const {
  TORCH_INTERNAL_ASSERT(false, "block: a batch norm is computed by its pass");
}

void BatchNorm::backward(BackwardRun& /*run*/) const {
  TORCH_INTERNAL_ASSERT(false, "block: a batch norm is computed by its pass");
}

namespace {
const RegisterStep<BatchNorm> kBatchNormStep;
}

}  // namespace actnn::blocks
