#include "actnn/cuda/quantize.h"

#include <algorithm>
#include <cstring>

#include "actnn/cpu/quantize.h"
#include "tests/cpp/cpu/test_data.h"
#include "tests/cpp/cuda/gpu_test.h"

namespace actnn::cuda {
namespace {

using cpu::as_elements;
using cpu::kElementTypes;
using cpu::random_values;

/// The header has no room for the offset's highest bit, and without it the same noise is drawn.
constexpr RandomState kState{0x123456789ABCDEF0, (uint64_t{1} << 63) + 77};

struct Case {
  ElementType type;
  int bits;
  int64_t count;
  int64_t group_size;
  Rounding rounding = Rounding::kDithered;
  size_t offset = 0;  ///< of the elements in their allocation, in bytes
};

std::ostream& operator<<(std::ostream& stream, const Case& c) {
  return stream << c.count << " elements of " << element_size(c.type) << " bytes, " << c.bits << " bits, groups of "
                << c.group_size << ", rounding " << static_cast<int>(c.rounding) << ", at " << c.offset;
}

std::vector<uint8_t> expected_bytes(const Case& c, const std::vector<uint8_t>& elements,
                                    const RandomState& state = kState) {
  const int64_t groups = group_count(c.count, c.group_size);
  std::vector<uint8_t> packed(static_cast<size_t>(packed_bytes(c.count, c.bits, c.group_size)));
  const auto header = PackedHeader::of(c.rounding == Rounding::kNearest ? RandomState{} : state, c.rounding);
  std::memcpy(packed.data(), &header, sizeof header);
  cpu::reference::quantize_groups({.elements = elements.data(),
                                   .type = c.type,
                                   .count = c.count,
                                   .group_size = c.group_size,
                                   .bits = c.bits,
                                   .parameters = packed.data() + kHeaderBytes,
                                   .codes = packed.data() + codes_offset(groups),
                                   .random = header.random(),
                                   .first_octet = 0,
                                   .rounding = c.rounding},
                                  0, groups);
  return packed;
}

std::vector<uint8_t> expected_elements(const Case& c, const std::vector<uint8_t>& packed) {
  const int64_t groups = group_count(c.count, c.group_size);
  std::vector<uint8_t> elements(static_cast<size_t>(c.count * element_size(c.type)));
  PackedHeader header;
  std::memcpy(&header, packed.data(), sizeof header);
  cpu::reference::dequantize_groups({.header = header,
                                     .parameters = packed.data() + kHeaderBytes,
                                     .codes = packed.data() + codes_offset(groups),
                                     .count = c.count,
                                     .group_size = c.group_size,
                                     .bits = c.bits,
                                     .type = c.type,
                                     .first_octet = 0,
                                     .elements = elements.data()},
                                    0, groups);
  return elements;
}

std::vector<uint8_t> quantized(const Case& c, const std::vector<uint8_t>& elements, cudaStream_t stream = nullptr) {
  const GpuBytes input(elements, c.offset);
  const GpuBytes packed(static_cast<size_t>(packed_bytes(c.count, c.bits, c.group_size)));
  check(quantize({.elements = input.as<void>(),
                  .type = c.type,
                  .count = c.count,
                  .group_size = c.group_size,
                  .bits = c.bits,
                  .packed = packed.as<uint8_t>(),
                  .random = {.shift = kState},
                  .rounding = c.rounding},
                 stream));
  check(cudaStreamSynchronize(stream));
  return packed.read();
}

std::vector<uint8_t> dequantized(const Case& c, const std::vector<uint8_t>& bytes) {
  const GpuBytes packed(bytes);
  const GpuBytes output(static_cast<size_t>(c.count * element_size(c.type)), c.offset);
  check(dequantize({.packed = packed.as<uint8_t>(),
                    .count = c.count,
                    .group_size = c.group_size,
                    .bits = c.bits,
                    .type = c.type,
                    .elements = output.as<void>()},
                   nullptr));
  return output.read();
}

void expect_the_bytes_of_the_cpu(const Case& c, const std::vector<float>& values) {
  const std::vector<uint8_t> elements = as_elements(values, c.type);
  const std::vector<uint8_t> packed = expected_bytes(c, elements);
  ASSERT_EQ(quantized(c, elements), packed) << c;
  ASSERT_EQ(dequantized(c, packed), expected_elements(c, packed)) << c;
}

/// The ways to round, or for most cases the usual one.
std::vector<Rounding> roundings(int64_t count) {
  return count > 2000 ? std::vector{Rounding::kDithered, Rounding::kStochastic, Rounding::kNearest}
                      : std::vector{Rounding::kDithered};
}

using Quantize = GpuTestOf<std::tuple<ElementType, int>>;
INSTANTIATE_TEST_SUITE_P(All, Quantize, testing::Combine(testing::ValuesIn(kElementTypes), testing::Range(1, 9)));

TEST_P(Quantize, GivesTheBytesOfTheCpu) {
  const auto [type, bits] = GetParam();
  for (const int64_t group_size : {32, 64, 96, 128, 256, 512, 1024, 2048}) {
    for (const int64_t count : {1, 8, 63, 257, 1024, 2048, 9300}) {
      const bool special = count % 2 == 1;
      for (const Rounding rounding : roundings(count)) {
        expect_the_bytes_of_the_cpu({type, bits, count, group_size, rounding},
                                    random_values(count, static_cast<unsigned>(count + bits), special));
      }
    }
  }
}

/// Some groups of a tile have infinities and NaNs, others nothing else, and most neither.
TEST_P(Quantize, GivesTheBytesOfTheCpuForElementsThatAreNotFinite) {
  const auto [type, bits] = GetParam();
  constexpr int64_t kCount = 6000;
  std::vector<float> values = random_values(kCount, 21, false);
  const float not_finite[] = {float_of(kInfinityFloat32), -float_of(kInfinityFloat32), float_of(kNanFloat32)};
  for (size_t i = 0; i < 3; ++i) {
    values[1500 + 1100 * i] = not_finite[i];
  }
  std::fill(values.begin() + 4096, values.begin() + 5120, not_finite[2]);
  values[4100] = 1.0F;  // a constant group, but for its NaNs
  for (const int64_t group_size : {32, 96, 128, 256, 512, 1024}) {
    for (const Rounding rounding : roundings(kCount)) {
      expect_the_bytes_of_the_cpu({type, bits, kCount, group_size, rounding}, values);
    }
  }
}

TEST_P(Quantize, TakesElementsThatBeginAnywhere) {
  const auto [type, bits] = GetParam();
  for (const int64_t group_size : {32, 96, 256, 1024}) {
    for (const int64_t elements : {1, 2, 3, 4, 7}) {
      expect_the_bytes_of_the_cpu(
          {type, bits, 2500, group_size, Rounding::kDithered, static_cast<size_t>(elements * element_size(type))},
          random_values(2500, 5, false));
    }
  }
}

TEST_P(Quantize, GivesTheBytesOfTheCpuForHugeAndTinyGroups) {
  const auto [type, bits] = GetParam();
  for (const float scale : {1e-44F, 1e-38F, 3e-5F, 1e4F, 1e38F}) {
    std::vector<float> values = random_values(1100, 9, false);
    for (float& value : values) {
      value *= scale;
    }
    expect_the_bytes_of_the_cpu({type, bits, 1100, 128}, values);
    expect_the_bytes_of_the_cpu({type, bits, 1100, 96}, values);
  }
}

TEST_P(Quantize, GivesTheBytesOfTheCpuForConstantGroups) {
  const auto [type, bits] = GetParam();
  for (const float value : {0.0F, -0.0F, 0.1F, -3.0F}) {
    for (const int64_t group_size : {96, 256}) {
      expect_the_bytes_of_the_cpu({type, bits, 600, group_size}, std::vector<float>(600, value));
    }
  }
}

class QuantizeOnce : public GpuTest {};

TEST_F(QuantizeOnce, DoesNothingForNoElements) { expect_the_bytes_of_the_cpu({ElementType::kFloat32, 4, 0, 256}, {}); }

TEST_F(QuantizeOnce, RunsOnTheStreamItIsGiven) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const Case c{ElementType::kFloat32, 3, 5000, 256};
  const std::vector<uint8_t> elements = as_elements(random_values(c.count, 1, false), c.type);
  EXPECT_EQ(quantized(c, elements, stream), expected_bytes(c, elements));
  check(cudaStreamDestroy(stream));
}

TEST_F(QuantizeOnce, ReadsItsStateFromDeviceMemoryAndAdvancesIt) {
  const Case c{ElementType::kFloat32, 2, 3000, 256};
  const std::vector<uint8_t> elements = as_elements(random_values(c.count, 1, false), c.type);
  const std::vector<uint8_t> expected = expected_bytes(c, elements);
  constexpr uint64_t kSeedShift = 0xFF00FF;
  constexpr uint64_t kOffsetShift = 7;
  // Which {seed, offset} gives kState when it is combined with the shift.
  const GpuArray<int64_t> state(std::vector<int64_t>{static_cast<int64_t>(kState.seed ^ kSeedShift),
                                                     static_cast<int64_t>(kState.offset - kOffsetShift - 1)});
  const GpuBytes input(elements);
  const GpuBytes packed(expected.size());
  check(advance_random_state(state.data(), nullptr));
  check(quantize({.elements = input.as<void>(),
                  .type = c.type,
                  .count = c.count,
                  .group_size = c.group_size,
                  .bits = c.bits,
                  .packed = packed.as<uint8_t>(),
                  .random = {.seed = state.data(), .offset = state.data() + 1, .shift = {kSeedShift, kOffsetShift}},
                  .rounding = c.rounding},
                 nullptr));
  check(advance_random_state(state.data(), nullptr));
  EXPECT_EQ(packed.read(), expected);
  EXPECT_EQ(state.read()[1], static_cast<int64_t>(kState.offset - kOffsetShift + 1));
}

/// Each replay's codes are decoded with the noise that they were rounded with.
TEST_F(QuantizeOnce, DrawsFreshNoiseAtEachReplayOfAGraph) {
  const Case c{ElementType::kBFloat16, 4, 5000, 256};
  const std::vector<uint8_t> elements = as_elements(random_values(c.count, 1, false), c.type);
  const GpuBytes input(elements);
  const GpuBytes packed(static_cast<size_t>(packed_bytes(c.count, c.bits, c.group_size)));
  const GpuBytes output(elements.size());
  const GpuArray<int64_t> state(std::vector<int64_t>{3, 10});
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  check(quantize({.elements = input.as<void>(),
                  .type = c.type,
                  .count = c.count,
                  .group_size = c.group_size,
                  .bits = c.bits,
                  .packed = packed.as<uint8_t>(),
                  .random = {.seed = state.data(), .offset = state.data() + 1, .shift = {}},
                  .rounding = c.rounding},
                 stream));
  check(advance_random_state(state.data(), stream));
  check(dequantize({.packed = packed.as<uint8_t>(),
                    .count = c.count,
                    .group_size = c.group_size,
                    .bits = c.bits,
                    .type = c.type,
                    .elements = output.as<void>()},
                   stream));
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t executable = nullptr;
  check(cudaGraphInstantiate(&executable, graph, 0));
  for (uint64_t replay = 0; replay < 3; ++replay) {
    check(cudaGraphLaunch(executable, stream));
    check(cudaStreamSynchronize(stream));
    const std::vector<uint8_t> expected = expected_bytes(c, elements, {3, 10 + replay});
    EXPECT_EQ(packed.read(), expected) << "replay " << replay;
    EXPECT_EQ(output.read(), expected_elements(c, expected)) << "replay " << replay;
  }
  check(cudaGraphExecDestroy(executable));
  check(cudaGraphDestroy(graph));
  check(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace actnn::cuda
