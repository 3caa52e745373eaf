#pragma once

#include <cstdint>

#include "actnn/ops/quantization.h"

namespace actnn::nn {

/// The options that every layer with a quantized activation has besides torch's. Setters return the complete options,
/// so that they chain with torch's: `Conv2dOptions(16, 32, 3).stride(2).bits(2).group_size(128)`.
template <typename Derived>
class QuantizationOptions {
 public:
  /// Bits of a code, 1..8.
  Derived& bits(int64_t value) {
    quantization_.bits = value;
    return derived();
  }
  int64_t bits() const noexcept { return quantization_.bits; }

  /// Elements that share a minimum and a step; a positive multiple of 32.
  Derived& group_size(int64_t value) {
    quantization_.group_size = value;
    return derived();
  }
  int64_t group_size() const noexcept { return quantization_.group_size; }

  /// How elements are rounded to codes (actnn/core/rounding.h).
  Derived& rounding(Rounding value) {
    quantization_.rounding = value;
    return derived();
  }
  Rounding rounding() const noexcept { return quantization_.rounding; }

  /// All of the above at once.
  Derived& quantization(const Quantization& value) {
    quantization_ = value;
    return derived();
  }
  const Quantization& quantization() const noexcept { return quantization_; }
  Quantization& quantization() noexcept { return quantization_; }

 private:
  Derived& derived() { return static_cast<Derived&>(*this); }

  Quantization quantization_;
};

}  // namespace actnn::nn
