#include "src/autograd/batch_norm_arguments.h"

#include "src/autograd/saved_activation.h"
#include "src/ops/checks.h"

namespace actnn {
namespace {

void check_channels(const char* op, const char* argument, const std::optional<at::Tensor>& tensor,
                    const at::Tensor& input) {
  TORCH_CHECK_VALUE(
      !tensor.has_value() || !tensor->defined() || (tensor->dim() == 1 && tensor->sym_size(0) == input.sym_size(1)), op,
      ": ", argument, " must have shape [C] = [", input.sym_size(1), "], got shape ", tensor->sym_sizes());
}

}  // namespace

void check_batch_norm(const char* op, const at::Tensor& input, const std::optional<at::Tensor>& weight,
                      const std::optional<at::Tensor>& bias, const BatchNormStatistics& statistics,
                      const SaveOptions& saving) {
  check_floating(op, "input", input);
  check_save_options(op, input, saving);
  TORCH_CHECK_VALUE(input.dim() >= 2, op, ": input must have shape [N, C] or [N, C, ...], got shape ",
                    input.sym_sizes());
  check_channels(op, "weight", weight, input);
  check_channels(op, "bias", bias, input);
  check_channels(op, "running_mean", statistics.running_mean, input);
  check_channels(op, "running_var", statistics.running_var, input);
  TORCH_CHECK_VALUE(statistics.training || (statistics.running_mean.has_value() && statistics.running_var.has_value()),
                    op, ": running_mean and running_var must be given in evaluation mode, got none");
}

}  // namespace actnn
