#include "src/app/build_info.h"

#include <ATen/Version.h>
#include <torch/headeronly/version.h>

namespace actnn::app {

std::string actnn_version() { return ACTNN_VERSION; }

std::string torch_version_built_for() { return TORCH_VERSION; }

std::string torch_version_running() {
  // torch says it only inside the text of its build settings.
  const std::string settings = at::show_config();
  const std::string key = "TORCH_VERSION=";
  const std::size_t begin = settings.find(key);
  if (begin == std::string::npos) {
    return "unknown";
  }
  const std::size_t end = settings.find_first_of(", \n", begin);
  return settings.substr(begin + key.size(), end - begin - key.size());
}

std::string cuda_kernels() { return ACTNN_CUDA_KERNELS; }

std::string compiler() {
#ifdef __clang__
  const std::string name = "clang " __clang_version__;
#else
  const std::string name = "g++ " __VERSION__;
#endif
  return name + ", " + ACTNN_BUILD_TYPE;
}

}  // namespace actnn::app
