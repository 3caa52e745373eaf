// The CPU kernels, one thread, against memcpy.
//
//   cpu_kernels_benchmark [--output FILE] [Google Benchmark's options, e.g. --benchmark_filter=quantize/float32]
//
// Every round times a kernel and, right after it, a memcpy of 64 MiB; both rates count bytes read plus bytes written.
// The percentage is the median over rounds of the two rates' ratio, which load on the machine changes less than either.

#include <benchmark/benchmark.h>
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <new>
#include <nlohmann/json.hpp>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "actnn/core/layout.h"
#include "actnn/cpu/columns.h"
#include "actnn/cpu/dropout.h"
#include "actnn/cpu/mask.h"
#include "actnn/cpu/norm_act.h"
#include "actnn/cpu/quantize.h"
#include "actnn/cpu/target.h"

namespace {

using actnn::ElementType;
using actnn::Rounding;

constexpr int64_t kInputBytes = int64_t{64} << 20;
constexpr int kRounds = 15;

const char* name_of(ElementType type) {
  switch (type) {
    case ElementType::kFloat16:
      return "float16";
    case ElementType::kBFloat16:
      return "bfloat16";
    case ElementType::kFloat32:
      break;
  }
  return "float32";
}

/// Memory aligned as torch aligns tensors.
template <class T>
struct TensorAllocator {
  using value_type = T;  // NOLINT(readability-identifier-naming): of the standard
  static constexpr std::align_val_t kAlignment{64};
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kAlignment)); }
  void deallocate(T* memory, size_t /*count*/) { ::operator delete(memory, kAlignment); }
  bool operator==(const TensorAllocator& /*other*/) const { return true; }
};

using Bytes = std::vector<uint8_t, TensorAllocator<uint8_t>>;

/// 64 MiB of normally distributed numbers of `type`: a million different ones, repeated.
Bytes normal_elements(ElementType type) {
  constexpr int64_t kDistinct = int64_t{1} << 20;
  Bytes bytes(kInputBytes);
  actnn::with_element_type(type, [&]<class Element>(Element /*tag*/) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    std::vector<Element> distinct(kDistinct);
    for (Element& element : distinct) {
      actnn::store_rounded(normal(generator), &element);
    }
    const int64_t distinct_bytes = kDistinct * actnn::element_size(type);
    for (int64_t offset = 0; offset < kInputBytes; offset += distinct_bytes) {
      std::memcpy(bytes.data() + offset, distinct.data(), static_cast<size_t>(distinct_bytes));
    }
  });
  return bytes;
}

/// The memory that one kernel works on.
struct Buffers {
  explicit Buffers(ElementType element_type)
      : type(element_type), count(kInputBytes / actnn::element_size(type)), input(normal_elements(type)) {}

  ElementType type;
  int64_t count;
  Bytes input;
  Bytes output = Bytes(kInputBytes);
  Bytes packed = Bytes(kInputBytes);
};

double seconds_of(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  benchmark::ClobberMemory();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double quantile(std::vector<double> values, double fraction) {
  const auto middle = values.begin() + static_cast<int64_t>(fraction * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Times `kernel`, which moves `bytes`, and memcpy in turns.
void measure(benchmark::State& state, Buffers& buffers, double bytes, const std::function<void()>& kernel) {
  constexpr double kCopyBytes = 2.0 * kInputBytes;
  const auto copy = [&] { std::memcpy(buffers.output.data(), buffers.input.data(), kInputBytes); };
  kernel();
  copy();
  std::vector<double> kernel_rates;
  std::vector<double> copy_rates;
  std::vector<double> ratios;
  for (auto _ : state) {
    const double kernel_seconds = seconds_of(kernel);
    state.SetIterationTime(kernel_seconds);
    kernel_rates.push_back(bytes / kernel_seconds / 1e9);
    copy_rates.push_back(kCopyBytes / seconds_of(copy) / 1e9);
    ratios.push_back(100 * kernel_rates.back() / copy_rates.back());
  }
  state.counters["gigabytes_per_second"] = quantile(kernel_rates, 0.5);
  state.counters["memcpy_gigabytes_per_second"] = quantile(copy_rates, 0.5);
  state.counters["percent_of_memcpy"] = quantile(ratios, 0.5);
  state.counters["percent_lower_quartile"] = quantile(ratios, 0.25);
  state.counters["percent_upper_quartile"] = quantile(ratios, 0.75);
}

actnn::cpu::QuantizeSegment quantize_segment(Buffers& buffers, int bits, Rounding rounding) {
  const int64_t groups = actnn::group_count(buffers.count, actnn::kDefaultGroupSize);
  return {.elements = buffers.input.data(),
          .type = buffers.type,
          .count = buffers.count,
          .group_size = actnn::kDefaultGroupSize,
          .bits = bits,
          .parameters = buffers.packed.data() + actnn::kHeaderBytes,
          .codes = buffers.packed.data() + actnn::codes_offset(groups),
          .random = {.seed = 1, .offset = 0},
          .first_octet = 0,
          .rounding = rounding};
}

double moved_by_quantization(const Buffers& buffers, int bits) {
  return static_cast<double>(kInputBytes + actnn::packed_bytes(buffers.count, bits, actnn::kDefaultGroupSize));
}

void quantize(benchmark::State& state, ElementType type, int bits, Rounding rounding) {
  Buffers buffers(type);
  const auto segment = quantize_segment(buffers, bits, rounding);
  const int64_t groups = actnn::group_count(buffers.count, segment.group_size);
  measure(state, buffers, moved_by_quantization(buffers, bits),
          [&] { actnn::cpu::quantize_groups(segment, 0, groups); });
}

void dequantize(benchmark::State& state, ElementType type, int bits, Rounding rounding) {
  Buffers buffers(type);
  const auto source = quantize_segment(buffers, bits, rounding);
  const int64_t groups = actnn::group_count(buffers.count, source.group_size);
  actnn::cpu::quantize_groups(source, 0, groups);
  const actnn::cpu::DequantizeSegment segment{.header = actnn::PackedHeader::of(source.random, rounding),
                                              .parameters = source.parameters,
                                              .codes = source.codes,
                                              .count = source.count,
                                              .group_size = source.group_size,
                                              .bits = bits,
                                              .type = type,
                                              .first_octet = source.first_octet,
                                              .elements = buffers.output.data()};
  measure(state, buffers, moved_by_quantization(buffers, bits),
          [&] { actnn::cpu::dequantize_groups(segment, 0, groups); });
}

/// A matrix of rows x channels in column groups of 4 bits.
struct ColumnBuffers : Buffers {
  ColumnBuffers(ElementType element_type, int64_t channel_count) : Buffers(element_type), channels(channel_count) {}

  int64_t channels;
  actnn::ColumnLayout<int64_t> layout{.rows = count / channels, .channels = channels, .bits = 4};
  actnn::RandomState random{.seed = 1, .offset = 0};
  uint8_t* parameters = packed.data() + actnn::kHeaderBytes;
  uint8_t* codes = packed.data() + layout.codes();

  double moved() const { return static_cast<double>(kInputBytes + layout.bytes()); }
  int64_t pieces() const { return actnn::cpu::column_pieces(layout); }

  void quantize() {
    actnn::cpu::quantize_columns({.elements = input.data(),
                                  .type = type,
                                  .layout = layout,
                                  .parameters = parameters,
                                  .codes = codes,
                                  .random = random,
                                  .rounding = Rounding::kDithered},
                                 0, pieces());
  }
};

void quantize_columns(benchmark::State& state, ElementType type, int64_t channels) {
  ColumnBuffers buffers(type, channels);
  measure(state, buffers, buffers.moved(), [&] { buffers.quantize(); });
}

void dequantize_columns(benchmark::State& state, ElementType type, int64_t channels) {
  ColumnBuffers buffers(type, channels);
  buffers.quantize();
  measure(state, buffers, buffers.moved(), [&] {
    actnn::cpu::dequantize_columns({.header = actnn::PackedHeader::of(buffers.random, Rounding::kDithered),
                                    .parameters = buffers.parameters,
                                    .codes = buffers.codes,
                                    .layout = buffers.layout,
                                    .type = type,
                                    .elements = buffers.output.data()},
                                   0, buffers.pieces());
  });
}

void relu(benchmark::State& state, ElementType type) {
  Buffers buffers(type);
  const int64_t octets = actnn::ceil_div(buffers.count, actnn::kOctet);
  measure(state, buffers, static_cast<double>(2 * kInputBytes + octets), [&] {
    actnn::cpu::relu(buffers.input.data(), type, buffers.count, buffers.output.data(), buffers.packed.data(), 0,
                     octets);
  });
}

void apply_mask(benchmark::State& state, ElementType type) {
  Buffers buffers(type);
  const int64_t octets = actnn::ceil_div(buffers.count, actnn::kOctet);
  actnn::cpu::relu(buffers.input.data(), type, buffers.count, buffers.output.data(), buffers.packed.data(), 0, octets);
  measure(state, buffers, static_cast<double>(2 * kInputBytes + octets), [&] {
    actnn::cpu::apply_mask(buffers.input.data(), type, buffers.count, buffers.packed.data(), buffers.output.data(), 0,
                           octets);
  });
}

void dropout(benchmark::State& state, ElementType type) {
  Buffers buffers(type);
  const actnn::cpu::DropoutArguments arguments{.input = buffers.input.data(),
                                               .type = type,
                                               .count = buffers.count,
                                               .probability = 0.5,
                                               .random = {.seed = 1, .offset = 0},
                                               .output = buffers.output.data()};
  const int64_t quads = actnn::ceil_div(buffers.count, actnn::kDropoutQuad);
  measure(state, buffers, 2.0 * kInputBytes, [&] { actnn::cpu::dropout(arguments, 0, quads); });
}

/// Batch norm with ReLU on a matrix of rows x channels: 3 bits and the side of the kink.
struct NormActBuffers : Buffers {
  NormActBuffers(ElementType element_type, int64_t channel_count)
      : Buffers(element_type),
        channels(channel_count),
        maps(channel_count, actnn::forward_channel(0.1F, 1.25F, 0.8F, 0.2F, true)),
        inverses(channel_count, actnn::decode_map(0.8F, 0.2F, true)),
        gradients(channel_count, {0.5F, 0.25F, -0.125F, 0.0F, 1.0F, 0.0F}),
        sums(2 * channel_count) {
    const auto header = actnn::PackedHeader::of({.seed = 1, .offset = 0}, Rounding::kDithered);
    std::memcpy(packed.data(), &header, sizeof header);
  }

  int64_t channels;
  actnn::ColumnLayout<int64_t> layout{.rows = count / channels, .channels = channels, .bits = 3, .masks = 1};
  actnn::FusedActivation activation{actnn::ActivationFunction::kLeakyReLU, 0.0F};
  std::vector<actnn::NormActChannel> maps;
  std::vector<actnn::DecodeMap> inverses;
  std::vector<actnn::NormActGradient> gradients;
  std::vector<double> sums;

  double packed_bytes() const { return static_cast<double>(layout.bytes()); }
  int64_t pieces() const { return actnn::cpu::column_pieces(layout); }

  void forward() {
    actnn::cpu::norm_act({.x = input.data(),
                          .residual = nullptr,
                          .y = output.data(),
                          .type = type,
                          .layout = layout,
                          .channels = maps.data(),
                          .activation = activation,
                          .keeps_below = false,
                          .packed = packed.data(),
                          .random = {.seed = 1, .offset = 0},
                          .rounding = Rounding::kDithered},
                         0, pieces());
  }

  actnn::cpu::NormActBackward backward() const {
    return {.packed = packed.data(),
            .layout = layout,
            .grad = input.data(),
            .second_grad = nullptr,
            .type = type,
            .activation = activation};
  }
};

void norm_act(benchmark::State& state, ElementType type, int64_t channels) {
  NormActBuffers buffers(type, channels);
  measure(state, buffers, 2.0 * kInputBytes + buffers.packed_bytes(), [&] { buffers.forward(); });
}

void norm_act_moments(benchmark::State& state, ElementType type, int64_t channels) {
  NormActBuffers buffers(type, channels);
  const int64_t parts = actnn::ceil_div(buffers.layout.rows, actnn::cpu::kPartRows);
  measure(state, buffers, kInputBytes, [&] {
    for (int64_t part = 0; part < parts; ++part) {
      actnn::cpu::part_moments(buffers.input.data(), type, buffers.layout.rows, channels, part, buffers.sums.data(),
                               buffers.sums.data() + channels);
    }
  });
}

void norm_act_sums(benchmark::State& state, ElementType type, int64_t channels) {
  NormActBuffers buffers(type, channels);
  buffers.forward();
  measure(state, buffers, kInputBytes + buffers.packed_bytes(), [&] {
    actnn::cpu::norm_act_sums(buffers.backward(), buffers.inverses.data(), 0, buffers.layout.blocks(),
                              buffers.sums.data(), buffers.sums.data() + channels);
  });
}

void norm_act_gradient(benchmark::State& state, ElementType type, int64_t channels) {
  NormActBuffers buffers(type, channels);
  buffers.forward();
  measure(state, buffers, 2.0 * kInputBytes + buffers.packed_bytes(), [&] {
    actnn::cpu::norm_act_input_gradient(buffers.backward(), buffers.gradients.data(), buffers.output.data(), nullptr, 0,
                                        buffers.pieces());
  });
}

void norm_act_output(benchmark::State& state, ElementType type, int64_t channels) {
  NormActBuffers buffers(type, channels);
  buffers.forward();
  measure(state, buffers, kInputBytes + buffers.packed_bytes(), [&] {
    actnn::cpu::norm_act_output(buffers.backward(), buffers.inverses.data(), buffers.output.data(), 0,
                                buffers.pieces());
  });
}

template <class Function, class... Arguments>
void add(const std::string& name, Function* function, Arguments... arguments) {
  benchmark::RegisterBenchmark(name.c_str(), function, arguments...)->UseManualTime()->Iterations(kRounds);
}

void add_benchmarks() {
  constexpr ElementType kTypes[] = {ElementType::kFloat32, ElementType::kFloat16, ElementType::kBFloat16};
  for (const ElementType type : kTypes) {
    for (int bits = actnn::kMinBits; bits <= actnn::kMaxBits; ++bits) {
      add(fmt::format("quantize/{}/{}", name_of(type), bits), quantize, type, bits, Rounding::kDithered);
      add(fmt::format("dequantize/{}/{}", name_of(type), bits), dequantize, type, bits, Rounding::kDithered);
    }
    // Without random numbers.
    add(fmt::format("quantize/{}/4/nearest", name_of(type)), quantize, type, 4, Rounding::kNearest);
    add(fmt::format("dequantize/{}/4/nearest", name_of(type)), dequantize, type, 4, Rounding::kNearest);
    add(fmt::format("relu/{}", name_of(type)), relu, type);
    add(fmt::format("apply_mask/{}", name_of(type)), apply_mask, type);
    add(fmt::format("dropout/{}", name_of(type)), dropout, type);
    for (const int64_t channels : {64, 384, 1024}) {
      add(fmt::format("quantize_columns/{}/{}", name_of(type), channels), quantize_columns, type, channels);
      add(fmt::format("dequantize_columns/{}/{}", name_of(type), channels), dequantize_columns, type, channels);
    }
    for (const int64_t channels : {16, 24, 64, 128, 512}) {
      const std::string suffix = fmt::format("{}/{}", name_of(type), channels);
      add("norm_act/" + suffix, norm_act, type, channels);
      add("norm_act_moments/" + suffix, norm_act_moments, type, channels);
      add("norm_act_sums/" + suffix, norm_act_sums, type, channels);
      add("norm_act_gradient/" + suffix, norm_act_gradient, type, channels);
      add("norm_act_output/" + suffix, norm_act_output, type, channels);
    }
  }
}

/// Prints a row of the table for each measurement, and keeps them for the JSON file.
class Reporter final : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context& /*context*/) override {
    fmt::print("CPU kernels, {}, one thread, {} MiB of input, median of {} rounds\n", actnn::cpu::current_target(),
               kInputBytes >> 20, kRounds);
    fmt::print("{:<34}{:>10}{:>14}{:>14}{:>16}\n", "kernel/type/bits or channels", "GB/s", "memcpy GB/s", "% of memcpy",
               "quartiles");
    return true;
  }

  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      nlohmann::ordered_json result{{"name", run.run_name.function_name}};
      for (const auto& [name, counter] : run.counters) {
        result[name] = std::round(100 * counter.value) / 100;
      }
      const auto value = [&](const char* name) { return run.counters.at(name).value; };
      fmt::print("{:<34}{:>10.2f}{:>14.2f}{:>14.0f}{:>16}\n", run.run_name.function_name, value("gigabytes_per_second"),
                 value("memcpy_gigabytes_per_second"), value("percent_of_memcpy"),
                 fmt::format("{:.0f}-{:.0f}", value("percent_lower_quartile"), value("percent_upper_quartile")));
      std::fflush(stdout);
      results_.push_back(std::move(result));
    }
  }

  /// JSON with a line for each measurement.
  void write(std::ostream& out) const {
    out << fmt::format("{{\n\"target\": \"{}\", \"threads\": 1, \"input_bytes\": {}, \"rounds\": {},\n\"results\": [\n",
                       actnn::cpu::current_target(), kInputBytes, kRounds);
    for (size_t i = 0; i < results_.size(); ++i) {
      out << results_[i].dump() << (i + 1 < results_.size() ? ",\n" : "\n");
    }
    out << "]\n}\n";
  }

 private:
  std::vector<nlohmann::ordered_json> results_;
};

/// Takes `--output FILE` out of the arguments.
std::string take_output_file(std::vector<char*>& arguments) {
  const auto option = std::find(arguments.begin(), arguments.end(), std::string("--output"));
  if (option == arguments.end() || option + 1 == arguments.end()) {
    return "";
  }
  std::string file = *(option + 1);
  arguments.erase(option, option + 2);
  return file;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<char*> arguments(argv, argv + argc);
  const std::string output_file = take_output_file(arguments);
  argc = static_cast<int>(arguments.size());
  benchmark::Initialize(&argc, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(argc, arguments.data())) {
    return 1;
  }
  add_benchmarks();
  Reporter reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter);
  if (!output_file.empty()) {
    std::ofstream file(output_file);
    reporter.write(file);
    if (!file) {
      fmt::print(stderr, "cpu_kernels_benchmark: cannot write {}\n", output_file);
      return 1;
    }
  }
  return 0;
}
