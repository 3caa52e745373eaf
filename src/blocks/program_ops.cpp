#include "src/blocks/program_ops.h"

#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "src/blocks/registry.h"
#include "src/blocks/run_checks.h"
#include "src/blocks/run_prepared.h"
#include "src/ops/dispatch.h"

namespace actnn::blocks {
namespace {

using Tensors = std::vector<at::Tensor>;

/// No two of the tensors share memory, with each other or with `others`.
void make_disjoint(Tensors& tensors, const Tensors& others) {
  std::set<const c10::StorageImpl*> seen;
  for (const at::Tensor& other : others) {
    seen.insert(other.storage().unsafeGetStorageImpl());
  }
  for (at::Tensor& tensor : tensors) {
    if (!seen.insert(tensor.storage().unsafeGetStorageImpl()).second) {
      tensor = tensor.clone();
    }
  }
}

/// Clones; on CUDA with one kernel for those of a dtype.
Tensors clones(at::TensorList tensors) {
  Tensors all;
  std::map<at::ScalarType, std::pair<Tensors, Tensors>> of_dtype;
  for (const at::Tensor& tensor : tensors) {
    auto& [copies, originals] = of_dtype[tensor.scalar_type()];
    all.push_back(copies.emplace_back(at::empty_like(tensor)));
    originals.push_back(tensor);
  }
  for (const auto& [dtype, pair] : of_dtype) {
    at::_foreach_copy_(pair.first, pair.second);
  }
  return all;
}

std::vector<bool> to_vector(const c10::List<bool>& list) { return {list.begin(), list.end()}; }

c10::List<bool> to_list(const std::vector<bool>& vector) {
  c10::List<bool> list;
  for (const bool entry : vector) {
    list.push_back(entry);
  }
  return list;
}

Tensors program_forward(const std::string& program, at::TensorList inputs, at::TensorList parameters,
                        at::TensorList buffers, at::TensorList copies, c10::SymIntArrayRef integers,
                        const c10::List<bool>& wanted, bool exports, at::ScalarType dtype) {
  const auto prepared = prepared_plan(program);
  check_lengths(*prepared, {inputs.size(), parameters.size(), buffers.size(), integers.size(), copies.size()});
  check_length("wanted", wanted.size(), static_cast<int64_t>(inputs.size() + parameters.size()));
  ForwardArguments arguments;
  arguments.parameters = parameters.vec();
  arguments.integers = integers.vec();
  arguments.copies = copies.vec();
  arguments.dtype = dtype;
  arguments.inputs = inputs.vec();
  arguments.buffers = clones(buffers);
  ForwardResult run = run_forward(prepared->plan, *prepared->schedule(to_vector(wanted), exports), arguments);
  Tensors all = std::move(run.results);
  all.insert(all.end(), run.saved.begin(), run.saved.end());
  all.insert(all.end(), arguments.buffers.begin(), arguments.buffers.end());
  Tensors given = arguments.inputs;
  given.insert(given.end(), parameters.begin(), parameters.end());
  make_disjoint(all, given);
  return all;
}

Tensors program_backward(const std::string& program, const c10::List<std::optional<at::Tensor>>& grads,
                         at::TensorList saved, at::TensorList parameters, at::TensorList copies,
                         c10::SymIntArrayRef integers, c10::SymIntArrayRef sizes, at::IntArrayRef ranks,
                         const c10::List<bool>& forward_wanted, bool exports, const c10::List<bool>& wanted,
                         at::IntArrayRef input_dtypes, at::ScalarType dtype) {
  const auto prepared = prepared_plan(program);
  check_lengths(*prepared, {ranks.size(), parameters.size(), std::nullopt, integers.size(), copies.size()});
  check_length("grads", grads.size(), static_cast<int64_t>(prepared->plan.program.results.size()));
  for (const auto* list : {&forward_wanted, &wanted}) {
    check_length("a list of wanted gradients", list->size(), static_cast<int64_t>(ranks.size() + parameters.size()));
  }
  check_length("input_dtypes", input_dtypes.size(), static_cast<int64_t>(ranks.size()));
  const auto is_negative = [](int64_t rank) { return rank < 0; };
  TORCH_CHECK_VALUE(std::none_of(ranks.begin(), ranks.end(), is_negative), "block: ranks must be 0 or more, got ",
                    ranks);
  check_length("sizes", sizes.size(), std::accumulate(ranks.begin(), ranks.end(), int64_t{0}));
  const auto schedule = prepared->schedule(to_vector(forward_wanted), exports);
  check_length("saved", saved.size(), static_cast<int64_t>(schedule->saved_tensors));
  BackwardArguments arguments;
  arguments.parameters = parameters.vec();
  arguments.integers = integers.vec();
  arguments.copies = copies.vec();
  arguments.dtype = dtype;
  for (const int64_t rank : ranks) {
    arguments.sizes.push_back(sizes.slice(0, rank).vec());
    sizes = sizes.slice(rank);
  }
  arguments.saved = saved.vec();
  for (size_t result = 0; result < grads.size(); ++result) {
    arguments.grads.push_back(grads.get(result).value_or(at::Tensor()));
  }
  std::vector<at::ScalarType> dtypes;
  std::transform(input_dtypes.begin(), input_dtypes.end(), std::back_inserter(dtypes),
                 [](int64_t number) { return static_cast<at::ScalarType>(number); });
  Tensors given = arguments.saved;
  given.insert(given.end(), parameters.begin(), parameters.end());
  std::copy_if(arguments.grads.begin(), arguments.grads.end(), std::back_inserter(given),
               [](const at::Tensor& grad) { return grad.defined(); });
  const std::vector<Sizes> input_sizes = arguments.sizes;
  const std::vector<bool> all_wanted = to_vector(wanted);
  Tensors gradients = run_backward(prepared->plan, *schedule, std::move(arguments), all_wanted, dtypes);
  Tensors returned;
  for (size_t place = 0; place < all_wanted.size(); ++place) {
    if (all_wanted[place]) {
      const size_t count = input_sizes.size();
      returned.push_back(gradients[place].defined() ? gradients[place]
                         : place < count ? at::zeros_symint(input_sizes[place], saved[0].options().dtype(dtypes[place]))
                                         : at::zeros_like(parameters[place - count]));
    }
  }
  make_disjoint(returned, given);
  return returned;
}

Tensors run_program(const std::string& program, at::TensorList inputs, at::TensorList parameters,
                    at::TensorList buffers, at::TensorList copies, c10::SymIntArrayRef integers) {
  return run_prepared(prepared_plan(program), inputs.vec(), parameters.vec(), buffers.vec(), integers.vec(),
                      copies.vec());
}

}  // namespace

TracedForward traced_forward(const PreparedPlan& prepared, const Schedule& schedule, const ForwardArguments& arguments,
                             const std::vector<bool>& wanted, bool exports) {
  static const auto kOp = find_op<decltype(program_forward)>("actnn::program_forward");
  Tensors all = kOp.call(prepared.text, arguments.inputs, arguments.parameters, arguments.buffers, arguments.copies,
                         arguments.integers, to_list(wanted), exports, arguments.dtype);
  const auto saved = all.begin() + static_cast<int64_t>(prepared.plan.program.results.size());
  const auto buffers = saved + static_cast<int64_t>(schedule.saved_tensors);
  TracedForward forward{.result = {.results = {all.begin(), saved}, .saved = {saved, buffers}, .exported = {}},
                        .buffers = {buffers, all.end()}};
  forward.result.exported = exported_copies(prepared.plan, schedule, forward.result.saved);
  return forward;
}

std::vector<at::Tensor> traced_backward(const PreparedPlan& prepared, const BackwardArguments& arguments,
                                        const std::vector<bool>& forward_wanted, bool exports,
                                        const std::vector<bool>& wanted,
                                        const std::vector<at::ScalarType>& input_dtypes) {
  static const auto kOp = find_op<decltype(program_backward)>("actnn::program_backward");
  c10::List<std::optional<at::Tensor>> grads;
  for (const at::Tensor& grad : arguments.grads) {
    grads.push_back(grad.defined() ? std::optional(grad) : std::nullopt);
  }
  Sizes sizes;
  std::vector<int64_t> ranks;
  for (const Sizes& size : arguments.sizes) {
    sizes.insert(sizes.end(), size.begin(), size.end());
    ranks.push_back(static_cast<int64_t>(size.size()));
  }
  std::vector<int64_t> dtypes;
  std::transform(input_dtypes.begin(), input_dtypes.end(), std::back_inserter(dtypes),
                 [](at::ScalarType dtype) { return static_cast<int64_t>(dtype); });
  const Tensors found =
      kOp.call(prepared.text, grads, arguments.saved, arguments.parameters, arguments.copies, arguments.integers, sizes,
               ranks, to_list(forward_wanted), exports, to_list(wanted), dtypes, arguments.dtype);
  Tensors gradients(wanted.size());
  auto next = found.begin();
  for (size_t place = 0; place < wanted.size() && next != found.end(); ++place) {
    if (wanted[place]) {
      gradients[place] = *next++;
    }
  }
  return gradients;
}

constexpr const char* kForwardArguments =
    "(str program, Tensor[] inputs, Tensor[] parameters, Tensor[] buffers, Tensor[] copies, SymInt[] integers, "
    "bool[] wanted, bool exports, ScalarType dtype) -> Tensor[]";
constexpr const char* kBackwardArguments =
    "(str program, Tensor?[] grads, Tensor[] saved, Tensor[] parameters, Tensor[] copies, SymInt[] integers, "
    "SymInt[] sizes, int[] ranks, bool[] forward_wanted, bool exports, bool[] wanted, int[] input_dtypes, "
    "ScalarType dtype) -> Tensor[]";

TORCH_LIBRARY_FRAGMENT(actnn, m) {
  m.def(
      "run_program(str program, Tensor[] inputs, Tensor[] parameters, Tensor(a!)[] buffers, Tensor[] copies, "
      "SymInt[] integers) -> Tensor[]");
  // What they draw is fresh at each call.
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded};
  m.def((std::string("program_forward") + kForwardArguments).c_str(), tags);
  m.def((std::string("program_backward") + kBackwardArguments).c_str(), tags);
  // The same as a sequence of ops, of which a tracer sees each: for sizes that are symbols.
  m.def((std::string("trace_program_forward") + kForwardArguments).c_str(), program_forward);
  m.def((std::string("trace_program_backward") + kBackwardArguments).c_str(), program_backward);
  m.def("describe_program(str program) -> str",
        [](const std::string& program) { return to_json(prepared_plan(program)->plan); });
  m.def("program_steps() -> str", steps_to_json);
}

TORCH_LIBRARY_IMPL(actnn, CompositeExplicitAutograd, m) {
  m.impl("run_program", run_program);
  m.impl("program_forward", program_forward);
  m.impl("program_backward", program_backward);
}

TORCH_LIBRARY_IMPL(actnn, Autograd, m) { m.impl("run_program", run_program); }

}  // namespace actnn::blocks
