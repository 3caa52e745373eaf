#pragma once

#include <bit>
#include <cstdint>

#include "actnn/core/max_pool.h"
#include "src/cuda/vector.cuh"

/// \file
/// Max-pooling of several channels at a time, by the instructions that compare and add two 16-bit elements at once.
/// Such a *packet* is one vector of neighbouring channels or, where channels are apart (as the planes of a contiguous
/// tensor are) or not aligned, four that are gathered one by one.

namespace actnn::cuda {

/// 16-bit elements two a word, floats one a word.
template <class Element>
inline constexpr int kWordElements = static_cast<int>(sizeof(uint32_t) / sizeof(Element));

/// All ones for each element of `values` that takes over from its element of `maxima` (core/max_pool.h), else zeros.
__device__ inline uint32_t takes_over_mask(uint32_t values, uint32_t maxima, float /*tag*/) {
  return takes_over(float_of(values), float_of(maxima)) ? ~0U : 0U;
}

template <class Element>
__device__ uint32_t takes_over_mask(uint32_t values, uint32_t maxima, Element /*tag*/) {
  using Native = typename Pair<Element>::Native;
  const auto v = from_word<Native>(values);
  return __hgt2_mask(v, from_word<Native>(maxima)) | __hneu2_mask(v, v);
}

/// Sums rounded to the element type. A NaN is not the canonical one yet.
__device__ inline uint32_t add_words(uint32_t a, uint32_t b, float /*tag*/) {
  return bits_of(__fadd_rn(float_of(a), float_of(b)));
}

template <class Element>
__device__ uint32_t add_words(uint32_t a, uint32_t b, Element /*tag*/) {
  using Native = typename Pair<Element>::Native;
  return to_word(__hadd2_rn(from_word<Native>(a), from_word<Native>(b)));
}

/// The elements of a packet; `kGathered` says that they are not one vector in memory.
template <class Element, bool kGathered>
struct ChannelPacket {
  static constexpr int kElements = kGathered ? 4 : kVectorElements<Element>;
  static constexpr int kWords = kElements / kWordElements<Element>;
  uint32_t word[kWords];

  __device__ static ChannelPacket filled(Element element) {
    ChannelPacket packet;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      if constexpr (kWordElements<Element> == 1) {
        packet.word[w] = bits_of(element);
      } else {
        packet.word[w] = both_halves(element.bits);
      }
    }
    return packet;
  }

  /// The bits of element `k`.
  __device__ auto operator[](int k) const {
    if constexpr (kWordElements<Element> == 1) {
      return word[k];
    } else {
      return static_cast<uint16_t>(word[k / 2] >> (16 * (k % 2)));
    }
  }
};

/// Positions below 256 of a packet, one byte per element, in words.
template <class Element, bool kGathered>
struct PositionPacket {
  static constexpr int kElements = ChannelPacket<Element, kGathered>::kElements;
  static constexpr int kWords = kElements / 4;
  uint32_t word[kWords];

  /// Zeros for each element of word `w` of the packet whose position is the byte of `expected`, given four times, else
  /// ones. Positions are below `kWindow`.
  template <int w, int kWindow>
  __device__ uint32_t differs(uint32_t expected) const {
    constexpr uint32_t kLow = 0x7F7F7F7F;
    const uint32_t difference = word[w * kWordElements<Element> / 4] ^ expected;
    // The highest bit of each byte; without it in the difference, no byte carries into the next.
    const uint32_t nonzero = kWindow <= 0x80 ? difference + kLow : ((difference & kLow) + kLow) | difference;
    constexpr uint32_t kBytes = kWordElements<Element> == 1 ? 0x8888 + 0x1111 * w : w % 2 == 0 ? 0x9988 : 0xBBAA;
    return spread_signs<kBytes>(nonzero);
  }

  __device__ uint8_t operator[](int k) const { return static_cast<uint8_t>(word[k / 4] >> (8 * (k % 4))); }
};

/// The maxima of a packet while a window is visited.
template <class Element, bool kGathered>
class MaximumPacket {
 public:
  using Channels = ChannelPacket<Element, kGathered>;
  using Positions = PositionPacket<Element, kGathered>;

  __device__ explicit MaximumPacket(uint32_t first_position) : maxima_(Channels::filled(minus_infinity<Element>())) {
#pragma unroll
    for (int w = 0; w < Channels::kWords; ++w) {
      positions_[w] = in_each_element(first_position);
    }
  }

  __device__ void visit(const Channels& values, uint32_t position) {
#pragma unroll
    for (int w = 0; w < Channels::kWords; ++w) {
      const uint32_t takes = takes_over_mask(values.word[w], maxima_.word[w], Element{});
      maxima_.word[w] = (values.word[w] & takes) | (maxima_.word[w] & ~takes);
      positions_[w] = (in_each_element(position) & takes) | (positions_[w] & ~takes);
    }
  }

  __device__ const Channels& maxima() const { return maxima_; }

  __device__ Positions positions() const {
    Positions packed{};
#pragma unroll
    for (int k = 0; k < Channels::kElements; k += 4) {
      if constexpr (kWordElements<Element> == 2) {
        packed.word[k / 4] = __byte_perm(positions_[k / 2], positions_[k / 2 + 1], 0x6420);
      } else {
        packed.word[k / 4] =
            __byte_perm(positions_[k] | positions_[k + 1] << 8, positions_[k + 2] | positions_[k + 3] << 8, 0x5410);
      }
    }
    return packed;
  }

 private:
  __device__ static uint32_t in_each_element(uint32_t position) {
    return kWordElements<Element> == 1 ? position : both_halves(position);
  }

  Channels maxima_;
  uint32_t positions_[Channels::kWords];
};

/// Sums of gradients.
template <class Element, bool kGathered>
class SumPacket {
 public:
  using Channels = ChannelPacket<Element, kGathered>;
  using Positions = PositionPacket<Element, kGathered>;

  /// Adds the gradients of those elements that have this position; all positions are below `kWindow`. The others' sums
  /// add +0 and stay, since no sum is -0.
  template <int kWindow = 256>
  __device__ void add(const Channels& gradients, const Positions& positions, uint32_t position) {
    add_words_from<0, kWindow>(gradients, positions, position * 0x01010101U);
  }

  __device__ Channels rounded() const {
    Channels rounded;
#pragma unroll
    for (int w = 0; w < Channels::kWords; ++w) {
      rounded.word[w] = with_canonical_nans<Element>(sums_.word[w]);
    }
    return rounded;
  }

 private:
  template <int w, int kWindow>
  __device__ void add_words_from(const Channels& gradients, const Positions& positions, uint32_t expected) {
    if constexpr (w < Channels::kWords) {
      const uint32_t chosen = gradients.word[w] & ~positions.template differs<w, kWindow>(expected);
      sums_.word[w] = add_words(sums_.word[w], chosen, Element{});
      add_words_from<w + 1, kWindow>(gradients, positions, expected);
    }
  }

  Channels sums_{};
};

/// Where the channels of a packet are, from the first one on.
template <int kElements, bool kGathered>
class PacketOffsets {
 public:
  /// Channels are `channel_stride` apart, and `valid` of them exist.
  __device__ PacketOffsets(int channel_stride, int valid) : valid_(valid) {
#pragma unroll
    for (int k = 0; k < kOffsets; ++k) {
      // What does not exist is loaded from the last channel and never stored.
      offset_[k] = min(k, valid - 1) * channel_stride;
    }
  }

  /// Channel `k` of a pixel, and `step` further. `first` is the packet's first channel at pixel 0.
  template <class T>
  __device__ T* at(T* first, int k, int pixel, int step = 0) const {
    return first + (offset_[k] + pixel) + step;
  }

  __device__ bool exists(int k) const { return k < valid_; }

 private:
  static constexpr int kOffsets = kGathered ? kElements : 1;
  int offset_[kOffsets];
  int valid_;
};

/// Packets of one kind of element, in registers and in memory. `pixel` is a pixel's distance from pixel 0.
template <class Element_, bool kGathered>
struct Packets {
  using Element = Element_;
  using Channels = ChannelPacket<Element, kGathered>;
  using Positions = PositionPacket<Element, kGathered>;
  using Maximum = MaximumPacket<Element, kGathered>;
  using Sum = SumPacket<Element, kGathered>;
  static constexpr int kElements = Channels::kElements;
  static constexpr bool kGathers = kGathered;
  using Offsets = PacketOffsets<kElements, kGathered>;

  __device__ static Channels load(const Element* from, const Offsets& offsets, int pixel, int step = 0) {
    if constexpr (!kGathered) {
      const uint4 words = __ldg(reinterpret_cast<const uint4*>(offsets.at(from, 0, pixel, step)));
      return {{words.x, words.y, words.z, words.w}};
    } else if constexpr (kWordElements<Element> == 1) {
      Channels packet;
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        packet.word[k] = bits_of(__ldg(offsets.at(from, k, pixel, step)));
      }
      return packet;
    } else {
      Channels packet;
#pragma unroll
      for (int k = 0; k < kElements; k += 2) {
        packet.word[k / 2] = __byte_perm(__ldg(&offsets.at(from, k, pixel, step)->bits),
                                         __ldg(&offsets.at(from, k + 1, pixel, step)->bits), 0x5410);
      }
      return packet;
    }
  }

  __device__ static Positions load(const uint8_t* from, const Offsets& offsets, int pixel, int step = 0) {
    if constexpr (kGathered) {
      Positions packet{};
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        packet.word[0] |= static_cast<uint32_t>(__ldg(offsets.at(from, k, pixel, step))) << (8 * k);
      }
      return packet;
    } else if constexpr (Positions::kWords == 1) {
      return {{__ldg(reinterpret_cast<const uint32_t*>(offsets.at(from, 0, pixel, step)))}};
    } else {
      const uint2 words = __ldg(reinterpret_cast<const uint2*>(offsets.at(from, 0, pixel, step)));
      return {{words.x, words.y}};
    }
  }

  __device__ static void store(const Channels& packet, Element* to, const Offsets& offsets, int pixel) {
    if constexpr (!kGathered) {
      *reinterpret_cast<uint4*>(offsets.at(to, 0, pixel)) =
          make_uint4(packet.word[0], packet.word[1], packet.word[2], packet.word[3]);
    } else {
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        if (offsets.exists(k)) {
          *offsets.at(to, k, pixel) = std::bit_cast<Element>(packet[k]);
        }
      }
    }
  }

  __device__ static void store(const Positions& packet, uint8_t* to, const Offsets& offsets, int pixel) {
    if constexpr (kGathered) {
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        if (offsets.exists(k)) {
          *offsets.at(to, k, pixel) = packet[k];
        }
      }
    } else if constexpr (Positions::kWords == 1) {
      __stcs(reinterpret_cast<uint32_t*>(offsets.at(to, 0, pixel)), packet.word[0]);
    } else {
      __stcs(reinterpret_cast<uint2*>(offsets.at(to, 0, pixel)), make_uint2(packet.word[0], packet.word[1]));
    }
  }

  /// Stores two pixels side by side in memory, of which the left one is aligned to both: a warp's stores are then
  /// contiguous.
  __device__ static void store_pair(const Channels& left, const Channels& right, Element* to, const Offsets& offsets,
                                    int pixel) {
    static_assert(kGathered);
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      if (!offsets.exists(k)) {
        continue;
      }
      if constexpr (kWordElements<Element> == 1) {
        *reinterpret_cast<uint2*>(offsets.at(to, k, pixel)) = make_uint2(left.word[k], right.word[k]);
      } else {
        *reinterpret_cast<uint32_t*>(offsets.at(to, k, pixel)) =
            __byte_perm(left.word[k / 2], right.word[k / 2], k % 2 == 0 ? 0x5410 : 0x7632);
      }
    }
  }
};

}  // namespace actnn::cuda
