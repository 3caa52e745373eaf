#include "src/ops/distributed_moments.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <c10/util/Exception.h>

#include <utility>

namespace actnn {
namespace {

/// An op of torch's distributed package. Found by name: a torch built without the package has none.
c10::OperatorHandle collective(const char* caller, const char* name) {
  const auto found = c10::Dispatcher::singleton().findSchema({name, ""});
  TORCH_CHECK_NOT_IMPLEMENTED(found.has_value(), caller, ": training mode needs torch's op ", name,
                              ", but this torch was built without its distributed package");
  return *found;
}

/// Called with boxed arguments: which of them are strings, and which of any type, differs between versions of torch.
template <class... Arguments>
at::Tensor call(const c10::OperatorHandle& op, Arguments&&... arguments) {
  torch::jit::Stack stack;
  torch::jit::push(stack, std::forward<Arguments>(arguments)...);
  op.callBoxed(stack);
  return torch::jit::pop(stack).toTensor();
}

}  // namespace

at::Tensor distributed_sum(const char* caller, const at::Tensor& tensor, const std::string& group_name) {
  static const c10::OperatorHandle kAllReduce = collective(caller, "_c10d_functional::all_reduce");
  static const c10::OperatorHandle kWait = collective(caller, "_c10d_functional::wait_tensor");
  try {
    return call(kWait, call(kAllReduce, tensor, "sum", group_name));
  } catch (const c10::Error& error) {
    // There is no op that asks whether a group is registered.
    TORCH_CHECK_VALUE(error.msg().find("rocess group registered under the name") == std::string::npos, caller,
                      ": group_name must be the name of a process group that is registered in this process (in Python "
                      "group.group_name, in C++ what c10d::register_process_group was given), got '",
                      group_name, "'");
    throw;
  }
}

/// One all-reduce of {n E[x], n E[x^2], n}. Var = E[x^2] - E[x]^2 cancels where the mean is large against the
/// deviation. In float64 that costs twice as many of the 53 bits as the rounding of the float32 inputs costs of their
/// 24: what is left is always more exact than the inputs. Central moments in float32, as by Chan, would need the mean
/// of all first, and a second all-reduce. The sums within a rank are central.
Moments distributed_moments(const char* caller, const at::Tensor& mean, const at::Tensor& var, const c10::SymInt& count,
                            const std::string& group_name) {
  const c10::SymInt channels = mean.sym_size(0);
  const at::Tensor wide_mean = mean.to(at::kDouble);
  at::Tensor sums =
      at::cat({wide_mean, at::addcmul(var.to(at::kDouble), wide_mean, wide_mean), at::ones({1}, wide_mean.options())});
  sums = distributed_sum(caller, sums.mul_(at::Scalar(count)), group_name);
  const at::Tensor total = sums.narrow_symint(0, 2 * channels, 1).clamp_min(1);
  const at::Tensor expectations = sums / total;
  const at::Tensor joint_mean = expectations.narrow_symint(0, 0, channels);
  const at::Tensor joint_var =
      at::addcmul(expectations.narrow_symint(0, channels, channels), joint_mean, joint_mean, /*value=*/-1)
          .clamp_min_(0);
  return {joint_mean.to(at::kFloat), joint_var.to(at::kFloat), total, expectations.narrow_symint(0, 2 * channels, 1)};
}

void update_running(const std::optional<at::Tensor>& running_mean, const std::optional<at::Tensor>& running_var,
                    const Moments& moments, std::optional<double> momentum,
                    const std::optional<at::Tensor>& num_batches_tracked) {
  const at::Tensor share = momentum ? moments.nonempty * *momentum : moments.nonempty / *num_batches_tracked;
  const auto update = [&](const at::Tensor& running, const at::Tensor& value) {
    running.lerp_(value.to(running.scalar_type()), share.to(running.scalar_type()));
  };
  if (running_mean.has_value() && running_mean->defined()) {
    update(*running_mean, moments.mean);
  }
  if (running_var.has_value() && running_var->defined()) {
    update(*running_var, moments.var * (moments.count / (moments.count - 1).clamp_min(1)));
  }
}

}  // namespace actnn
