#include "src/app/interrupt.h"

#include <csignal>

namespace actnn::app {
namespace {

volatile std::sig_atomic_t interrupted = 0;

void handle(int) { interrupted = 1; }

}  // namespace

InterruptGuard::InterruptGuard() {
  struct sigaction action {};
  action.sa_handler = handle;
  // Calls that the signal finds waiting go on; the second signal finds the default action.
  action.sa_flags = static_cast<int>(SA_RESTART | SA_RESETHAND);
  interrupted = 0;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

InterruptGuard::~InterruptGuard() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

bool InterruptGuard::requested() const { return interrupted != 0; }

}  // namespace actnn::app
