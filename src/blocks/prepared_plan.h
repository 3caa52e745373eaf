#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "actnn/blocks/plan.h"
#include "src/blocks/schedule.h"

namespace actnn::blocks {

/// A plan that is run many times, and its schedules so far.
struct PreparedPlan {
  explicit PreparedPlan(Plan plan_, std::string text_ = {}) : plan(std::move(plan_)), text(std::move(text_)) {}

  std::shared_ptr<const Schedule> schedule(const std::vector<bool>& wanted, bool exports) const;

  /// The same program, planned for inputs whose copies are there already; made once.
  std::shared_ptr<const PreparedPlan> importing(const std::vector<Import>& imports) const;

  const Plan plan;
  const int64_t parameters = plan.program.parameters();  ///< that a run must be given
  const int64_t buffers = plan.program.buffers();
  const std::string text;  ///< that it was made of, for ops that compilers trace; empty: none
  mutable std::atomic<int64_t> saved_bytes = 0;

 private:
  mutable std::mutex mutex_;
  mutable std::map<std::pair<std::vector<bool>, bool>, std::shared_ptr<const Schedule>> schedules_;
  using ImportKey = std::vector<std::tuple<Value, CopyFormat::Kind, int64_t, int64_t, ActivationFunction, float>>;
  mutable std::map<ImportKey, std::shared_ptr<const PreparedPlan>> importing_;
};

/// The plan of a program's text (`plan_from_json`), made once in a process.
std::shared_ptr<const PreparedPlan> prepared_plan(const std::string& text);

}  // namespace actnn::blocks
