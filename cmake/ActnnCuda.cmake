# Decides whether CUDA kernels are built, and says so: ACTNN_WITH_CUDA.
#   ACTNN_CUDA=OFF   never
#   ACTNN_CUDA=AUTO  if a toolkit of the CUDA version that torch was built with is found
#   ACTNN_CUDA=ON    always; not finding a matching toolkit is an error

set(ACTNN_WITH_CUDA OFF)
if(ACTNN_CUDA STREQUAL "OFF")
  message(STATUS "actnn: CUDA kernels are left out (ACTNN_CUDA=OFF)")
  return()
endif()

find_package(CUDAToolkit QUIET)
set(_actnn_reason "")
if(ACTNN_WITH_TORCH AND (NOT TARGET actnn::c10_cuda OR NOT ActnnTorch_CUDA_VERSION))
  set(_actnn_reason "torch ${ActnnTorch_VERSION} was built without CUDA")
elseif(NOT CUDAToolkit_FOUND)
  set(_actnn_reason "no CUDA toolkit was found")
elseif(ACTNN_WITH_TORCH)
  string(REGEX MATCH "^[0-9]+" _actnn_torch_major "${ActnnTorch_CUDA_VERSION}")
  if(NOT CUDAToolkit_VERSION_MAJOR EQUAL _actnn_torch_major)
    set(_actnn_reason
      "the CUDA toolkit is ${CUDAToolkit_VERSION}, but torch was built with CUDA ${ActnnTorch_CUDA_VERSION}")
  endif()
endif()

if(_actnn_reason STREQUAL "")
  set(ACTNN_WITH_CUDA ON)
  message(STATUS "actnn: CUDA kernels for ${ACTNN_CUDA_ARCHITECTURES}, CUDA toolkit ${CUDAToolkit_VERSION}")
elseif(ACTNN_CUDA STREQUAL "ON")
  message(FATAL_ERROR "ACTNN_CUDA=ON, but ${_actnn_reason}")
else()
  message(STATUS "actnn: CUDA kernels are left out: ${_actnn_reason}")
endif()
