#pragma once

#include <c10/core/DeviceType.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

/// \file
/// Counts the bytes of tensors: live, peak, and over time.

namespace actnn {

/// The live bytes after one allocation or release.
struct MemorySample {
  int64_t microseconds;  ///< since the timeline's start
  int64_t live_bytes;
};

/// A named moment, such as "forward", "backward" or "step".
struct MemoryMark {
  int64_t microseconds;  ///< since the timeline's start
  std::string name;
};

struct MemoryTimeline {
  std::vector<MemorySample> samples;  ///< in order of time; the first is the state at the start
  std::vector<MemoryMark> marks;      ///< in order of time
};

/// Counts what torch's tensor allocators hand out and take back while the observer lives.
///
/// Live bytes are relative to the observer's construction. Releases of older memory are reported by the CUDA allocator
/// and not by the CPU's, so that live bytes can become negative on a GPU; differences are exact. The CPU reports the
/// bytes asked for, the CUDA caching allocator its blocks (multiples of 512 bytes).
///
/// The observer sees the thread that made it, and the threads that torch hands the thread's state to: backward's worker
/// threads, or a thread of your own that holds an `at::ThreadLocalStateGuard`. It does not see memory that does not
/// come from torch's allocators, such as the scratch of oneDNN or the C++ objects of the autograd graph.
///
/// Observers nest: an inner one hides nothing from the outer ones. They must be destroyed on the thread that made them,
/// in reverse order. All member functions may be called from any thread. torch's profiler lives in the same place: the
/// constructor throws std::logic_error while it runs on this thread, and it must not be started while an observer
/// lives.
class AllocationObserver {
 public:
  AllocationObserver();
  ~AllocationObserver();
  AllocationObserver(const AllocationObserver&) = delete;
  AllocationObserver& operator=(const AllocationObserver&) = delete;

  /// Bytes allocated and not yet released, over all devices of a type.
  int64_t live_bytes(c10::DeviceType type = c10::DeviceType::CPU) const;

  /// The most live bytes since the construction or the last `reset_peak`.
  int64_t peak_bytes(c10::DeviceType type = c10::DeviceType::CPU) const;

  /// Sets the peak of every device type to its live bytes.
  void reset_peak();

  /// Records every change of the live bytes of one device type from now on, dropping what an earlier timeline recorded.
  /// A sample takes 16 bytes of ordinary memory; a training step has hundreds to thousands.
  void start_timeline(c10::DeviceType type = c10::DeviceType::CPU);

  /// Names this moment in the timeline; without one, does nothing.
  void mark(std::string name);

  /// Ends the recording and returns it; empty if none was started.
  MemoryTimeline stop_timeline();

 private:
  class Recorder;
  class Installation;
  std::shared_ptr<Recorder> recorder_;
  std::unique_ptr<Installation> installation_;
};

}  // namespace actnn
