#pragma once

#include <string>
#include <vector>

/// \file
/// Which instruction set the CPU kernels use. Every target gives the same bytes; this is for tests and measurements.
/// The environment variable `ACTNN_CPU_TARGET` (a name of `available_targets()`, e.g. `AVX2` or `reference`) forces one
/// for the whole process; it is read at the first kernel call.

namespace actnn::cpu {

/// The names of the targets that were compiled in and that this processor has, best first; the last is "reference", the
/// scalar code that defines the format.
std::vector<std::string> available_targets();

/// The target in use.
std::string current_target();

/// Uses `name` from now on in all threads; throws std::invalid_argument naming the choices if it is not available.
/// Not to be called while kernels run.
void select_target(const std::string& name);

}  // namespace actnn::cpu
