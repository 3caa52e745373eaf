#pragma once

#include <string>

namespace actnn::app {

/// "0.1.0"
std::string actnn_version();

/// The versions of torch that this program was compiled with and that it runs with, e.g. "2.11.0".
std::string torch_version_built_for();
std::string torch_version_running();

/// The compiler with its version, and the kind of build.
std::string compiler();

/// The GPUs that CUDA kernels were built for, as CMAKE_CUDA_ARCHITECTURES names them, or "none".
std::string cuda_kernels();

}  // namespace actnn::app
