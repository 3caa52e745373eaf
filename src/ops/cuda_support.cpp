#include "src/ops/cuda_support.h"

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <mutex>

namespace actnn {
namespace {

/// Keeps our noise apart from torch's own under the same seed: both use Philox, with different counters.
constexpr uint64_t kSeedShift = 0x6163746E6E000000;  // "actnn"

/// What one call takes from torch's generator, whose offsets count in steps of 4 random words.
constexpr uint64_t kGeneratorStep = 4;

cuda::RandomSource next_of_default_generator() {
  auto* generator = at::check_generator<at::CUDAGeneratorImpl>(at::cuda::detail::getDefaultCUDAGenerator());
  const std::scoped_lock lock(generator->mutex_);
  const at::PhiloxCudaState state = generator->philox_cuda_state(kGeneratorStep);
  if (state.captured_) {
    return {.seed = state.seed_.ptr, .offset = state.offset_.ptr, .shift = {kSeedShift, state.offset_intragraph_}};
  }
  return {.seed = nullptr, .offset = nullptr, .shift = {state.seed_.val ^ kSeedShift, state.offset_.val}};
}

}  // namespace

cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream(); }

void check_launch(cudaError_t error) { C10_CUDA_CHECK(error); }

cuda::RandomSource random_source(const std::optional<at::Tensor>& rng_state) {
  if (!rng_state.has_value()) {
    return next_of_default_generator();
  }
  const int64_t* state = rng_state->const_data_ptr<int64_t>();
  return {.seed = state, .offset = state + 1, .shift = {}};
}

void advance_random_state(const std::optional<at::Tensor>& rng_state) {
  if (rng_state.has_value()) {
    check_launch(cuda::advance_random_state(rng_state->mutable_data_ptr<int64_t>(), current_stream()));
  }
}

at::Tensor aligned_bytes(const at::Tensor& packed) {
  constexpr uintptr_t kAlignment = 16;
  return reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % kAlignment == 0 ? packed : packed.clone();
}

}  // namespace actnn
