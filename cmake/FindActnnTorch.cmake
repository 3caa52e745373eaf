# Finds the LibTorch inside a PyTorch wheel (or an unpacked LibTorch), without torch's own CMake package, which needs a CUDA
# toolkit even for CPU programs.
#
#   ACTNN_TORCH_DIR        torch's folder (with include/ and lib/); when empty, the environment variable of the same name, then
#                          Python's `torch`
#   ACTNN_PYTHON           the Python to ask; when empty, the one that builds the Python package (scikit-build-core says which),
#                          then the .venv of the project, then python3 on the PATH
#
# Defines actnn::torch_cpu, and actnn::torch_cuda where the wheel has it; ActnnTorch_VERSION, ActnnTorch_CUDA_VERSION.

set(ACTNN_TORCH_DIR "" CACHE PATH "Folder of torch: with include/ and lib/")
set(ACTNN_PYTHON "" CACHE FILEPATH "Python whose torch is used")

set(_actnn_torch_dir "${ACTNN_TORCH_DIR}")
if(NOT _actnn_torch_dir)
  set(_actnn_torch_dir "$ENV{ACTNN_TORCH_DIR}")
endif()
if(NOT _actnn_torch_dir)
  set(_actnn_python "${ACTNN_PYTHON}")
  if(NOT _actnn_python AND SKBUILD)
    set(_actnn_python "${Python_EXECUTABLE}")
  endif()
  if(NOT _actnn_python AND EXISTS "${PROJECT_SOURCE_DIR}/.venv/bin/python")
    set(_actnn_python "${PROJECT_SOURCE_DIR}/.venv/bin/python")
  endif()
  if(NOT _actnn_python)
    find_program(_actnn_python_on_path NAMES python3 python)
    set(_actnn_python "${_actnn_python_on_path}")
  endif()
  if(_actnn_python)
    # -I: pip's build isolation hides the environment's packages, torch among them, by means of PYTHONPATH.
    execute_process(
      COMMAND "${_actnn_python}" -I -c
              "import importlib.util, os; print(os.path.dirname(importlib.util.find_spec('torch').origin))"
      OUTPUT_VARIABLE _actnn_torch_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
endif()

find_path(ActnnTorch_INCLUDE_DIR NAMES torch/library.h HINTS "${_actnn_torch_dir}/include" NO_DEFAULT_PATH NO_CACHE)
foreach(_actnn_lib c10 torch_cpu c10_cuda torch_cuda)
  find_library(ActnnTorch_${_actnn_lib}_LIBRARY NAMES ${_actnn_lib} HINTS "${_actnn_torch_dir}/lib" NO_DEFAULT_PATH NO_CACHE)
endforeach()

if(ActnnTorch_INCLUDE_DIR)
  file(STRINGS "${ActnnTorch_INCLUDE_DIR}/torch/headeronly/version.h" _actnn_version_lines
       REGEX "^#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
  string(REGEX REPLACE "[^0-9;]" "" _actnn_version_parts "${_actnn_version_lines}")
  list(JOIN _actnn_version_parts "." ActnnTorch_VERSION)
endif()
set(ActnnTorch_CUDA_VERSION "")
if(_actnn_torch_dir AND EXISTS "${_actnn_torch_dir}/version.py")
  file(STRINGS "${_actnn_torch_dir}/version.py" _actnn_cuda_line REGEX "^cuda.*'[0-9.]+'")
  if(_actnn_cuda_line)
    string(REGEX REPLACE ".*'([0-9.]+)'.*" "\\1" ActnnTorch_CUDA_VERSION "${_actnn_cuda_line}")
  endif()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(ActnnTorch
  REQUIRED_VARS ActnnTorch_torch_cpu_LIBRARY ActnnTorch_c10_LIBRARY ActnnTorch_INCLUDE_DIR
  VERSION_VAR ActnnTorch_VERSION
  REASON_FAILURE_MESSAGE
    "torch was not found: install it into the environment that builds (tools/bootstrap does for the project's .venv), or set ACTNN_TORCH_DIR or ACTNN_PYTHON")

if(ActnnTorch_FOUND AND NOT TARGET actnn::torch_cpu)
  add_library(actnn::c10 SHARED IMPORTED)
  set_target_properties(actnn::c10 PROPERTIES
    IMPORTED_LOCATION "${ActnnTorch_c10_LIBRARY}"
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES
      "${ActnnTorch_INCLUDE_DIR};${ActnnTorch_INCLUDE_DIR}/torch/csrc/api/include"
    INTERFACE_INCLUDE_DIRECTORIES "${ActnnTorch_INCLUDE_DIR};${ActnnTorch_INCLUDE_DIR}/torch/csrc/api/include"
    INTERFACE_COMPILE_DEFINITIONS "_GLIBCXX_USE_CXX11_ABI=1")
  add_library(actnn::torch_cpu SHARED IMPORTED)
  set_target_properties(actnn::torch_cpu PROPERTIES IMPORTED_LOCATION "${ActnnTorch_torch_cpu_LIBRARY}")
  target_link_libraries(actnn::torch_cpu INTERFACE actnn::c10)
  if(ActnnTorch_torch_cuda_LIBRARY AND ActnnTorch_c10_cuda_LIBRARY)
    add_library(actnn::torch_cuda SHARED IMPORTED)
    set_target_properties(actnn::torch_cuda PROPERTIES IMPORTED_LOCATION "${ActnnTorch_torch_cuda_LIBRARY}")
    add_library(actnn::c10_cuda SHARED IMPORTED)
    set_target_properties(actnn::c10_cuda PROPERTIES IMPORTED_LOCATION "${ActnnTorch_c10_cuda_LIBRARY}")
    target_link_libraries(actnn::c10_cuda INTERFACE actnn::c10)
    target_link_libraries(actnn::torch_cuda INTERFACE actnn::torch_cpu actnn::c10_cuda)
  endif()
endif()
