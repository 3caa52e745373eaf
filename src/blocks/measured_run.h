#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "src/blocks/backward.h"
#include "src/blocks/prepared_plan.h"
#include "src/blocks/saved_values.h"

/// \file
/// What `BlockNoise` measures in the backward of one run.

namespace actnn::blocks {

/// Squared norms of gradients: of all parameters, and of each input. float64 scalars on the device.
struct SquaredNorms {
  at::Tensor parameters;
  std::vector<at::Tensor> inputs;

  bool defined() const { return parameters.defined(); }
  void add(const SquaredNorms& other);
};

/// A result of a run, or a value that it saves, by the places of both.
struct PlaceInRun {
  size_t run;
  size_t place;
};

struct MeasuredRun {
  /// A packed tensor that backward reads.
  struct Copy {
    PlaceInRun saved_by;  ///< the value that it is of
    bool is_imported;
    size_t tensor;  ///< its place among the saved or the imported ones
    SquaredNorms noise = {};
  };

  std::string block;
  std::vector<SavedValue> values;
  std::vector<int64_t> elements;  ///< of each
  int64_t saved_bytes;
  /// The blocks' results that each input was made of.
  std::vector<std::vector<PlaceInRun>> sources;
  /// Of the copies, in units of that of dithered ones.
  double variance_of_rounding;

  std::vector<Copy> copies;
  /// Of each result: what noise in its gradient is in those of parameters and inputs, per squared norm.
  std::vector<SquaredNorms> responses;
};

/// The runs of a pass in the order of their forwards. Threads share it.
struct MeasuredRuns {
  std::vector<std::string> prefixes;  ///< of the names of blocks that take part
  std::mutex mutex;
  std::vector<std::shared_ptr<MeasuredRun>> runs;
  std::map<const void*, PlaceInRun> owners;  ///< by the memory of packed tensors

  /// What a run that is about to be one of them has made.
  struct Forward {
    const PreparedPlan& prepared;
    const Schedule& schedule;
    const std::vector<at::Tensor>& saved;
    const std::vector<at::Tensor>& copies;  ///< of imports
    const std::vector<Sizes>& sizes;        ///< of inputs
    const std::vector<at::Tensor>& parameters;
    const std::vector<c10::SymInt>& integers;
    std::vector<std::vector<PlaceInRun>> sources;
  };
  /// With its number, by which it is a source of others.
  std::pair<std::shared_ptr<MeasuredRun>, size_t> add(Forward forward);
};

/// Of the pass that has begun, if a plan's runs are part of it; else null.
std::shared_ptr<MeasuredRuns> runs_to_measure(const Plan& plan);
/// Returns whether it could: not if a pass has begun already.
bool begin_to_measure(std::shared_ptr<MeasuredRuns> runs);
void stop_measuring();

/// As `run_backward` with the gradient of one result at least, and measures.
std::vector<at::Tensor> measured_backward(MeasuredRun& measured, const PreparedPlan& prepared, const Schedule& schedule,
                                          const BackwardArguments& arguments, const std::vector<bool>& wanted,
                                          const std::vector<at::ScalarType>& input_dtypes);

}  // namespace actnn::blocks
