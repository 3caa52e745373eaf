#include <c10/util/Exception.h>
#include <fmt/core.h>
#include <malloc.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "src/app/build_info.h"
#include "src/app/error.h"
#include "src/app/info.h"
#include "src/app/options.h"
#include "src/app/train.h"

namespace {

using namespace actnn::app;

int run(int argc, const char* const* argv) {
  const std::optional<Command> command = parse_command_line(argc, argv, actnn_version());
  int code = kExitSuccess;
  if (command && command->kind == Command::Kind::kInfo) {
    fmt::print("{}", info());
  } else if (command) {
    code = train(command->train);
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    throw RunError("cannot write to the standard output");
  }
  return code;
}

/// Memory that is freed stays the process's. By default glibc gives large blocks back to the system, and the next step
/// of a training faults the same pages in anew: 25 000 of them, a tenth of a step of ResNet-20 (mallopt(3)).
void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}

/// Prints one sentence: torch's messages may go on over lines.
int fail(int code, std::string message) {
  if (const std::size_t end = message.find('\n'); end != std::string::npos) {
    message.resize(end);
  }
  fmt::print(stderr, "actnn: {}\n", message);
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  // A file beyond the limit on its size is then an ordinary error of write().
  std::signal(SIGXFSZ, SIG_IGN);
  keep_freed_memory();
  try {
    return run(argc, argv);
  } catch (const UsageError& error) {
    return fail(kExitUsage, std::string(error.what()) + " (actnn --help says more)");
  } catch (const c10::Error& error) {
    return fail(kExitFailure, error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return fail(kExitFailure, "out of memory");
  } catch (const std::exception& error) {
    return fail(kExitFailure, error.what());
  }
}
