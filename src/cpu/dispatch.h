#pragma once

namespace actnn::cpu {

/// Whether `ACTNN_CPU_TARGET` or `select_target` asked for the scalar reference. The first call applies the environment
/// variable and throws std::invalid_argument if it names no available target.
bool use_reference();

}  // namespace actnn::cpu
