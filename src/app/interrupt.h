#pragma once

namespace actnn::app {

/// While it lives, SIGINT and SIGTERM only set a flag; a second one of the same kind ends the process as usual.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  bool requested() const;
};

}  // namespace actnn::app
