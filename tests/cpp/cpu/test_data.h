#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "actnn/core/scalar_types.h"
#include "actnn/cpu/target.h"

namespace actnn::cpu {

inline constexpr ElementType kElementTypes[] = {ElementType::kFloat32, ElementType::kFloat16, ElementType::kBFloat16};

/// `values` as elements of `type`.
inline std::vector<uint8_t> as_elements(const std::vector<float>& values, ElementType type) {
  std::vector<uint8_t> bytes(values.size() * static_cast<size_t>(element_size(type)));
  with_element_type(type, [&]<class Element>(Element /*tag*/) {
    for (size_t i = 0; i < values.size(); ++i) {
      Element element;
      store_rounded(values[i], &element);
      std::memcpy(bytes.data() + i * sizeof element, &element, sizeof element);
    }
  });
  return bytes;
}

/// Normal numbers with a few zeros of both signs, and, on request, some infinities, NaNs and subnormals.
inline std::vector<float> random_values(int64_t count, unsigned seed, bool special) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    value = normal(random);
    const unsigned kind = random() % 64;
    if (kind < 2) {
      value = kind == 0 ? 0.0F : -0.0F;
    } else if (special && kind < 5) {
      value = kind == 2 ? float_of(0x7F800000) : kind == 3 ? float_of(0xFF800000) : float_of(0xFFC12345);
    } else if (special && kind < 8) {
      value *= 1e-40F;
    }
  }
  return values;
}

/// A finite number of any magnitude and sign; one of three is a bfloat16, or next to one.
inline float any_finite(std::mt19937& random) {
  for (;;) {
    uint32_t bits = static_cast<uint32_t>(random());
    const unsigned kind = random() % 9;
    if (kind < 3) {
      bits = (bits & 0xFFFF0000U) + kind - 1;
    }
    if (is_finite(float_of(bits))) {
      return float_of(bits);
    }
  }
}

/// Runs `body` with every target that this processor has; the reference is last.
template <class Body>
void for_targets(Body&& body) {
  const std::vector<std::string> targets = available_targets();
  for (const std::string& target : targets) {
    select_target(target);
    body(target);
  }
  select_target(targets.front());
}

}  // namespace actnn::cpu
