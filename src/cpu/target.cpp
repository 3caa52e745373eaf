#include "actnn/cpu/target.h"

#include <hwy/highway.h>
#include <hwy/targets.h>

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "src/cpu/dispatch.h"

namespace actnn::cpu {
namespace {

constexpr const char* kReference = "reference";

constexpr int64_t kBest = 0;
constexpr int64_t kReferenceTarget = -1;

/// kBest, kReferenceTarget or one of Highway's target bits.
std::atomic<int64_t> selected_target{kBest};

/// All targets with vectors, best first; Highway's scalar one runs the reference. Highway is asked once: its answer
/// selects the best one again.
const std::vector<int64_t>& vector_targets() {
  static const std::vector<int64_t> kTargets = [] {
    std::vector<int64_t> targets = hwy::SupportedAndGeneratedTargets();
    std::erase(targets, static_cast<int64_t>(HWY_SCALAR));
    return targets;
  }();
  return kTargets;
}

void use_target(const std::string& name) {
  if (name == kReference) {
    selected_target = kReferenceTarget;
    return;
  }
  std::string choices;
  for (const int64_t target : vector_targets()) {
    if (name == hwy::TargetName(target)) {
      hwy::GetChosenTarget().Update(target);
      selected_target = target;
      return;
    }
    choices += std::string(hwy::TargetName(target)) + ", ";
  }
  throw std::invalid_argument("actnn: CPU target must be one of " + choices + kReference + ", got \"" + name + "\"");
}

void apply_environment_once() {
  [[maybe_unused]] static const bool kApplied = [] {
    const char* name = std::getenv("ACTNN_CPU_TARGET");
    if (name != nullptr && *name != '\0') {
      use_target(name);
    }
    return true;
  }();
}

}  // namespace

std::vector<std::string> available_targets() {
  std::vector<std::string> names;
  for (const int64_t target : vector_targets()) {
    names.emplace_back(hwy::TargetName(target));
  }
  names.emplace_back(kReference);
  return names;
}

std::string current_target() {
  if (use_reference()) {
    return kReference;
  }
  const int64_t selected = selected_target;
  const std::vector<int64_t>& targets = vector_targets();
  if (selected == kBest) {
    return targets.empty() ? kReference : hwy::TargetName(targets.front());
  }
  return hwy::TargetName(selected);
}

void select_target(const std::string& name) {
  apply_environment_once();
  use_target(name);
}

bool use_reference() {
  apply_environment_once();
  return selected_target.load(std::memory_order_relaxed) == kReferenceTarget;
}

}  // namespace actnn::cpu
