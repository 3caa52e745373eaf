#include "src/blocks/prepared_plan.h"

#include <unordered_map>

namespace actnn::blocks {
namespace {

/// That are remembered, unless more are in use: each new allocation of bits has texts of its own.
constexpr size_t kMostPlans = 4096;

}  // namespace

std::shared_ptr<const Schedule> PreparedPlan::schedule(const std::vector<bool>& wanted, bool exports) const {
  const std::lock_guard lock(mutex_);
  std::shared_ptr<const Schedule>& known = schedules_[{wanted, exports}];
  if (known == nullptr) {
    known = std::make_shared<const Schedule>(make_schedule(plan, wanted, exports));
  }
  return known;
}

std::shared_ptr<const PreparedPlan> PreparedPlan::importing(const std::vector<Import>& imports) const {
  ImportKey key;
  for (const auto& [input, format] : imports) {
    key.emplace_back(input, format.kind, format.bits, format.group_rows, format.activation.function,
                     format.activation.slope);
  }
  const std::lock_guard lock(mutex_);
  std::shared_ptr<const PreparedPlan>& known = importing_[key];
  if (known == nullptr) {
    Plan importing = plan;
    importing.imports = imports;
    check_plan(importing);
    known = std::make_shared<const PreparedPlan>(std::move(importing));
  }
  return known;
}

std::shared_ptr<const PreparedPlan> prepared_plan(const std::string& text) {
  static std::mutex mutex;
  static std::unordered_map<std::string, std::shared_ptr<const PreparedPlan>> plans;
  const std::lock_guard lock(mutex);
  if (plans.size() >= kMostPlans && !plans.contains(text)) {
    std::erase_if(plans, [](const auto& entry) { return entry.second.use_count() == 1; });
  }
  std::shared_ptr<const PreparedPlan>& known = plans[text];
  if (known == nullptr) {
    try {
      known = std::make_shared<const PreparedPlan>(plan_from_json(text), text);
    } catch (...) {
      plans.erase(text);
      throw;
    }
  }
  return known;
}

}  // namespace actnn::blocks
