#include "actnn/ops/random.h"

#include <ATen/ops/randint.h>
#include <ATen/ops/tensor.h>

#include <array>

namespace actnn {

at::Tensor make_rng_state(int64_t seed, c10::Device device) {
  const std::array<int64_t, 2> state{seed, 0};
  return at::tensor(c10::ArrayRef<int64_t>(state), at::TensorOptions().dtype(at::kLong)).to(device);
}

at::Tensor default_rng_state(c10::Device device) {
  // Seed and offset are both random: an operation starts a stream of its own, and one integer op suffices on every
  // device.
  constexpr int64_t kBound = int64_t{1} << 62;
  return at::randint(kBound, {2}, at::TensorOptions().dtype(at::kLong).device(device));
}

}  // namespace actnn
