#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "actnn/core/layout.h"
#include "actnn/cpu/norm_act.h"
#include "tests/cpp/cpu/test_data.h"

/// \file
/// A matrix with channels of all kinds that tests of normalization with activation run.

namespace actnn::cpu {

/// Memory aligned as torch aligns tensors.
template <class T>
struct TensorAllocator {
  using value_type = T;  // NOLINT(readability-identifier-naming): the standard's
  static constexpr std::align_val_t kAlignment{64};
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kAlignment)); }
  void deallocate(T* memory, size_t /*count*/) { ::operator delete(memory, kAlignment); }
  bool operator==(const TensorAllocator& /*other*/) const { return true; }
};
using Bytes = std::vector<uint8_t, TensorAllocator<uint8_t>>;

inline std::vector<float> as_floats(const Bytes& elements, ElementType type) {
  std::vector<float> values;
  with_element_type(type, [&]<class Element>(Element /*tag*/) {
    for (size_t i = 0; i < elements.size() / sizeof(Element); ++i) {
      Element element;
      std::memcpy(&element, elements.data() + i * sizeof element, sizeof element);
      values.push_back(to_float(element));
    }
  });
  return values;
}

inline Bytes as_bytes(const std::vector<float>& values, ElementType type) {
  const std::vector<uint8_t> elements = as_elements(values, type);
  return {elements.begin(), elements.end()};
}

inline float rounded(float value, ElementType type) {
  return with_element_type(type, [&]<class Element>(Element element) {
    store_rounded(value, &element);
    return to_float(element);
  });
}

struct NormActProblem {
  ColumnLayout<int64_t> layout;  ///< with bits and masks
  ElementType type;
  FusedActivation activation = {};
  bool keeps_below = true;
  bool has_residual = false;
  bool special = false;  ///< there are infinities, NaNs and subnormals
  Rounding rounding = Rounding::kDithered;
  RandomState random = {0x123456789ABCDEF0, 77};
  float scale = 1.0F;          ///< of the elements
  bool any_magnitude = false;  ///< elements are finite, and of any size

  static constexpr float kMean = 0.2F;
  static constexpr float kRstd = 1.25F;

  int64_t count() const { return layout.rows * layout.channels; }
  int64_t pieces() const { return column_pieces(layout); }
  bool has_packed() const { return layout.bits + layout.masks != 0; }

  /// Some thousand different ones, repeated.
  Bytes elements(unsigned seed) const {
    std::vector<float> values = random_values(std::min<int64_t>(count(), 4099), seed, special);
    std::mt19937 generator(seed);
    for (float& value : values) {
      value = any_magnitude ? any_finite(generator) : value * scale;
    }
    const std::vector<uint8_t> distinct = as_elements(values, type);
    Bytes bytes(static_cast<size_t>(count() * element_size(type)));
    for (size_t i = 0; i < bytes.size(); i += distinct.size()) {
      std::copy_n(distinct.begin(), std::min(distinct.size(), bytes.size() - i),
                  bytes.begin() + static_cast<int64_t>(i));
    }
    return bytes;
  }

  /// Channels of every kind: weights of both signs, tiny ones, 0; kinks near, far, and on either side.
  static float weight(int64_t c) { return std::array{1.0F, -0.7F, 0.0F, 1e-3F, 2.5F, -1e-6F, 0.3F, 1e-42F}[c % 8]; }
  static float bias(int64_t c) { return std::array{0.1F, -0.4F, 0.5F, 0.007F, 0.0F, -0.2F, 2.0F}[c % 7]; }
  bool kinked() const { return has_kink(activation.function) && layout.masks != 0; }

  template <class Map, class Function>
  std::vector<Map> per_channel(Function&& function) const {
    std::vector<Map> maps;
    for (int64_t c = 0; c < layout.channels; ++c) {
      maps.push_back(function(c));
    }
    return maps;
  }
  std::vector<NormActChannel> channels() const {
    return per_channel<NormActChannel>(
        [&](int64_t c) { return forward_channel(kMean, kRstd, weight(c), bias(c), kinked()); });
  }
  std::vector<DecodeMap> decode() const {
    return per_channel<DecodeMap>([&](int64_t c) { return decode_map(weight(c), bias(c), kinked()); });
  }
  std::vector<NormActGradient> gradients() const {
    return per_channel<NormActGradient>([&](int64_t c) {
      return gradient_channel(decode_map(weight(c), bias(c), kinked()), weight(c), kRstd, 0.01F, 0.02F);
    });
  }

  std::string text() const {
    return std::to_string(layout.rows) + " x " + std::to_string(layout.channels) + ", groups of " +
           std::to_string(layout.group_rows) + ", " + std::to_string(layout.bits) + " bits, " +
           std::to_string(layout.masks) + " masks, function " + std::to_string(static_cast<int>(activation.function)) +
           ", slope " + std::to_string(activation.slope) + ", rounding " + std::to_string(static_cast<int>(rounding)) +
           (special ? ", special" : "") + (has_residual ? ", residual" : "") + (keeps_below ? ", keeps below" : "");
  }
};

/// A packed tensor with its header, and zeros between parameters and codes.
inline Bytes empty_packed(const ColumnLayout<int64_t>& layout, const RandomState& random, Rounding rounding,
                          uint8_t content = 0) {
  Bytes packed(static_cast<size_t>(layout.bytes()), content);
  const PackedHeader header = PackedHeader::of(random, rounding);
  std::memcpy(packed.data(), &header, sizeof header);
  const int64_t parameters = kHeaderBytes + layout.groups() * static_cast<int64_t>(sizeof(GroupParameters));
  std::fill(packed.begin() + parameters, packed.begin() + layout.codes(), uint8_t{0});
  return packed;
}

}  // namespace actnn::cpu
