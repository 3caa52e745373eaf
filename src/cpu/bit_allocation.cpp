#include "actnn/cpu/bit_allocation.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "actnn/core/bit_allocation.h"
#include "actnn/core/bit_packing.h"

namespace actnn::cpu {

void allocate_sample_bits(const float* sensitivity, int64_t samples, int initial, int64_t excess, uint8_t* bits) {
  struct Decrement {
    double price;
    int64_t sample;
  };
  // Decrements of one sample are alike to the order: only how many are taken counts.
  const auto before = [](const Decrement& a, const Decrement& b) {
    return std::tie(a.price, a.sample) < std::tie(b.price, b.sample);
  };
  std::vector<Decrement> decrements;
  decrements.reserve(samples * (initial - kMinBits));
  for (int64_t sample = 0; sample < samples; ++sample) {
    const double counted = counted_sensitivity(sensitivity[sample]);
    for (int from = initial; from > kMinBits; --from) {
      decrements.push_back({rise_of_variance(counted, from), sample});
    }
  }
  const auto taken = decrements.begin() + std::clamp<int64_t>(excess, 0, static_cast<int64_t>(decrements.size()));
  std::nth_element(decrements.begin(), taken, decrements.end(), before);
  std::fill_n(bits, samples, static_cast<uint8_t>(initial));
  std::for_each(decrements.begin(), taken, [&](const Decrement& decrement) { --bits[decrement.sample]; });
}

}  // namespace actnn::cpu
