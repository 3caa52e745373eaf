#pragma once

/// \file
/// Marks a function as callable from the host and from CUDA device code. The arithmetic of the packed format is written
/// once with it and compiled for both.
///
/// Translation units that use this arithmetic must be compiled without contraction and without fast-math
/// (`-ffp-contract=off`, `--fmad=false`): a fused multiply-add would change a code near a rounding boundary, and with
/// it the bytes.

#if defined(__CUDACC__)
#define ACTNN_HOST_DEVICE __host__ __device__
#else
#define ACTNN_HOST_DEVICE
#endif
