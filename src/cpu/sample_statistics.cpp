#include "actnn/cpu/sample_statistics.h"

#include <algorithm>

#include "actnn/core/bit_packing.h"

namespace actnn::cpu {
namespace {

template <class Element>
float largest_distance(const Element* elements, int64_t count) {
  float smallest = to_float(elements[0]);
  float largest = smallest;
  bool any_nan = false;
  for (int64_t i = 0; i < count; ++i) {
    const float x = to_float(elements[i]);
    any_nan = any_nan || is_nan(x);
    smallest = x < smallest ? x : smallest;
    largest = x > largest ? x : largest;
  }
  return any_nan ? float_of(kNanFloat32) : largest - smallest;
}

}  // namespace

float group_range_square_sum(const void* elements, ElementType type, int64_t count, int64_t group_size) {
  return with_element_type(type, [&]<class Element>(Element /*tag*/) {
    const auto* typed = static_cast<const Element*>(elements);
    double sum = 0.0;
    for (int64_t begin = 0; begin < count; begin += group_size) {
      const double distance = largest_distance(typed + begin, std::min(group_size, count - begin));
      sum += distance * distance;
    }
    return static_cast<float>(sum);
  });
}

float square_norm(const void* elements, ElementType type, int64_t count) {
  return with_element_type(type, [&]<class Element>(Element /*tag*/) {
    const auto* typed = static_cast<const Element*>(elements);
    // One chain of additions per place in an octet, so that they overlap.
    double sums[kOctet] = {};
    for (int64_t i = 0; i < count; ++i) {
      const double x = to_float(typed[i]);
      sums[i % kOctet] += x * x;
    }
    double sum = 0.0;
    for (const double part : sums) {
      sum += part;
    }
    return static_cast<float>(sum);
  });
}

}  // namespace actnn::cpu
