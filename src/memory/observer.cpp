#include "actnn/memory/observer.h"

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace actnn {

/// What the allocators report to. Shared, because torch hands it to other threads.
class AllocationObserver::Recorder final : public c10::MemoryReportingInfoBase {
 public:
  Recorder() : enclosing_info_(c10::ThreadLocalDebugInfo::current()) {
    // torch's profiler casts whatever is installed in this slot to its own type, so the two cannot share it.
    c10::DebugInfoBase* enclosing = c10::ThreadLocalDebugInfo::get(c10::DebugInfoKind::PROFILER_STATE);
    enclosing_ = dynamic_cast<Recorder*>(enclosing);
    if (enclosing != nullptr && enclosing_ == nullptr) {
      throw std::logic_error(
          "actnn::AllocationObserver: torch's profiler runs on this thread and uses the same place; stop it first");
    }
  }

  void reportMemoryUsage(void* pointer, int64_t alloc_size, size_t total_allocated, size_t total_reserved,
                         c10::Device device) override {
    if (enclosing_ != nullptr) {
      enclosing_->reportMemoryUsage(pointer, alloc_size, total_allocated, total_reserved, device);
    }
    const std::lock_guard lock(mutex_);
    Count& count = counts_[index_of(device.type())];
    count.live += alloc_size;
    count.peak = std::max(count.peak, count.live);
    if (recording_ && timeline_type_ == device.type()) {
      timeline_.samples.push_back({elapsed(), count.live});
    }
  }

  bool memoryProfilingEnabled() const override { return true; }

  int64_t live(c10::DeviceType type) const {
    const std::lock_guard lock(mutex_);
    return counts_[index_of(type)].live;
  }

  int64_t peak(c10::DeviceType type) const {
    const std::lock_guard lock(mutex_);
    return counts_[index_of(type)].peak;
  }

  void reset_peak() {
    const std::lock_guard lock(mutex_);
    for (Count& count : counts_) {
      count.peak = count.live;
    }
  }

  void start_timeline(c10::DeviceType type) {
    const std::lock_guard lock(mutex_);
    recording_ = true;
    timeline_type_ = type;
    start_ = Clock::now();
    timeline_ = {.samples = {{0, counts_[index_of(type)].live}}, .marks = {}};
  }

  void mark(std::string name) {
    const std::lock_guard lock(mutex_);
    if (recording_) {
      timeline_.marks.push_back({elapsed(), std::move(name)});
    }
  }

  MemoryTimeline stop_timeline() {
    const std::lock_guard lock(mutex_);
    recording_ = false;
    return std::exchange(timeline_, {});
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Count {
    int64_t live = 0;
    int64_t peak = 0;
  };

  static size_t index_of(c10::DeviceType type) { return static_cast<size_t>(type); }

  int64_t elapsed() const {
    return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start_).count();
  }

  std::shared_ptr<c10::ThreadLocalDebugInfo> enclosing_info_;  // keeps enclosing_ alive on other threads
  Recorder* enclosing_ = nullptr;

  mutable std::mutex mutex_;
  std::array<Count, c10::COMPILE_TIME_MAX_DEVICE_TYPES> counts_{};
  bool recording_ = false;
  c10::DeviceType timeline_type_ = c10::DeviceType::CPU;
  Clock::time_point start_;
  MemoryTimeline timeline_;
};

class AllocationObserver::Installation {
 public:
  explicit Installation(std::shared_ptr<Recorder> recorder)
      : guard_(c10::DebugInfoKind::PROFILER_STATE, std::move(recorder)) {}

 private:
  c10::DebugInfoGuard guard_;
};

AllocationObserver::AllocationObserver()
    : recorder_(std::make_shared<Recorder>()), installation_(std::make_unique<Installation>(recorder_)) {}

AllocationObserver::~AllocationObserver() = default;

int64_t AllocationObserver::live_bytes(c10::DeviceType type) const { return recorder_->live(type); }

int64_t AllocationObserver::peak_bytes(c10::DeviceType type) const { return recorder_->peak(type); }

void AllocationObserver::reset_peak() { recorder_->reset_peak(); }

void AllocationObserver::start_timeline(c10::DeviceType type) { recorder_->start_timeline(type); }

void AllocationObserver::mark(std::string name) { recorder_->mark(std::move(name)); }

MemoryTimeline AllocationObserver::stop_timeline() { return recorder_->stop_timeline(); }

}  // namespace actnn
