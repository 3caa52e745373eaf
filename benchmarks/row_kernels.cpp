// The passes of transformers over their rows on a GPU, each alone, against a device-to-device copy of as many bytes.
//
//   row_kernels_benchmark [--output FILE] [--size ROWSxCHANNELS]... [--filter TEXT]
//
// A sample is several launches over matrices that take turns, so that no cache holds what a launch reads; the copy is
// timed right behind it. Both rates count bytes read plus bytes written, what a pass writes and reads in its workspace
// not among them. Shown are medians.

#include <cuda_runtime_api.h>
#include <fmt/core.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "actnn/core/columns.h"
#include "actnn/cuda/cast.h"
#include "actnn/cuda/column_activation.h"
#include "actnn/cuda/columns.h"
#include "actnn/cuda/rows.h"

namespace actnn::cuda {
namespace {

constexpr auto kFloat = ElementType::kFloat32;
constexpr auto kBrain = ElementType::kBFloat16;
constexpr int kTurns = 4;  // sets of matrices
constexpr int kLaunches = 3 * kTurns;
constexpr int kSamples = 21;

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
  }
}

class GpuMemory {
 public:
  explicit GpuMemory(size_t size) { check(cudaMalloc(&memory_, size)); }
  ~GpuMemory() { cudaFree(memory_); }
  GpuMemory(const GpuMemory&) = delete;
  GpuMemory& operator=(const GpuMemory&) = delete;
  template <class T = void>
  T* as() const {
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
};

struct Size {
  int64_t rows;
  int64_t channels;
};

/// Normally distributed numbers: a million different ones, repeated.
void fill(void* memory, ElementType type, int64_t count) {
  constexpr int64_t kDistinct = int64_t{1} << 20;
  with_element_type(type, [&]<class Element>(Element /*tag*/) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    std::vector<Element> distinct(static_cast<size_t>(std::min(kDistinct, count)));
    for (Element& element : distinct) {
      store_rounded(normal(generator), &element);
    }
    for (int64_t first = 0; first < count; first += kDistinct) {
      check(cudaMemcpy(static_cast<Element*>(memory) + first, distinct.data(),
                       sizeof(Element) * static_cast<size_t>(std::min(kDistinct, count - first)),
                       cudaMemcpyHostToDevice));
    }
  });
}

/// The matrices of one turn, which a pass takes in the order in which it asks for them, and the bytes that it moves.
class Matrices {
 public:
  Matrices(const Size& own_size) : size(own_size) {}

  RowSource source(ElementType type) { return {filled(type, size.rows * size.channels), type}; }
  RowTarget target(ElementType type) { return {filled(type, size.rows * size.channels), type}; }
  RowSource parameter(ElementType type) { return {filled(type, size.channels), type}; }
  float* floats(int64_t count) { return static_cast<float*>(filled(kFloat, count)); }
  /// ... that are not counted.
  float* workspace(int sums) {
    const double counted = bytes;
    float* const memory = floats(column_sums_workspace(size.rows, size.channels, sums));
    bytes = counted;
    return memory;
  }
  ColumnLayout<int64_t> layout(int bits) const { return {size.rows, size.channels, kDefaultGroupRows, bits, 0}; }
  /// A matrix that is packed, or room for one.
  uint8_t* packed(ElementType type, int bits) {
    const ColumnLayout<int64_t> packed_layout = layout(bits);
    auto* const memory = static_cast<uint8_t*>(allocated(packed_layout.bytes()));
    const GpuMemory elements(static_cast<size_t>(size.rows * size.channels * element_size(type)));
    fill(elements.as(), type, size.rows * size.channels);
    check(quantize_columns({elements.as(), type, packed_layout, memory, {.shift = {1, 0}}, Rounding::kDithered},
                           nullptr));
    check(cudaDeviceSynchronize());
    return memory;
  }

  Size size;
  double bytes = 0;

 private:
  void* allocated(int64_t count) {
    bytes += static_cast<double>(count);
    return memories_.emplace_back(std::make_unique<GpuMemory>(static_cast<size_t>(count)))->as();
  }
  void* filled(ElementType type, int64_t count) {
    void* const memory = allocated(count * element_size(type));
    fill(memory, type, count);
    return memory;
  }

  std::vector<std::unique_ptr<GpuMemory>> memories_;
};

using Launch = std::function<cudaError_t()>;

struct Pass {
  std::string name;
  int64_t wider;  ///< how many times the channels it has
  std::function<Launch(Matrices&)> make;
};

Launch normalize(Matrices& of, bool is_centered, bool has_second, double dropout = 0.0) {
  const bool has_residual = dropout > 0.0;
  const NormalizeRows norm{.rows = of.size.rows,
                           .channels = of.size.channels,
                           .is_centered = is_centered,
                           .eps = 1e-5,
                           .x = of.source(has_residual ? kBrain : kFloat),
                           .residual = has_residual ? of.source(kFloat) : RowSource{},
                           .dropout = dropout,
                           .random = {.shift = {1, 0}},
                           .weight = of.parameter(kFloat),
                           .bias = is_centered ? of.parameter(kFloat) : RowSource{},
                           .normalized = of.target(kBrain),
                           .output = of.target(kBrain),
                           .second_output = has_second ? of.target(kFloat) : RowTarget{},
                           .rstd = of.floats(of.size.rows)};
  return [norm] { return normalize_rows(norm, nullptr); };
}

/// `dropout`: of the branch of the sum that is normalized, whose gradient is wanted, too; negative: there is none.
Launch normalize_backward(Matrices& of, bool is_centered, bool is_in_front, double dropout = -1.0) {
  const bool has_branch = dropout >= 0.0;
  const NormalizeRowsBackward norm{.rows = of.size.rows,
                                   .channels = of.size.channels,
                                   .is_centered = is_centered,
                                   .grad = of.source(kBrain),
                                   .second_grad = is_in_front ? RowSource{} : of.source(kFloat),
                                   .normalized = of.source(kBrain),
                                   .weight = of.parameter(kFloat),
                                   .rstd = of.floats(of.size.rows),
                                   .residual_grad = is_in_front ? of.source(kFloat) : RowSource{},
                                   .grad_input = of.target(kFloat),
                                   .has_branch = has_branch,
                                   .dropout = std::max(dropout, 0.0),
                                   .random = RandomSource{.shift = {1, 0}},
                                   .grad_branch = has_branch ? of.target(kBrain) : RowTarget{},
                                   .branch_sums = has_branch ? of.floats(of.size.channels) : nullptr,
                                   .grad_weight = of.floats(of.size.channels),
                                   .grad_bias = of.floats(of.size.channels),
                                   .workspace = of.workspace(has_branch ? 3 : 2)};
  return [norm] { return normalize_rows_backward(norm, nullptr); };
}

Launch add(Matrices& of, double dropout) {
  const AddRows sum{.rows = of.size.rows,
                    .channels = of.size.channels,
                    .x = of.source(kBrain),
                    .residual = of.source(kFloat),
                    .dropout = dropout,
                    .random = {.shift = {1, 0}},
                    .output = of.target(kFloat)};
  return [sum] { return add_rows(sum, nullptr); };
}

Launch add_backward(Matrices& of, double dropout) {
  const DropRows drop{.rows = of.size.rows,
                      .channels = of.size.channels,
                      .grad = of.source(kFloat),
                      .dropout = dropout,
                      .random = {.shift = {1, 0}},
                      .output = of.target(kBrain),
                      .sums = of.floats(of.size.channels),
                      .workspace = of.workspace(1)};
  return [drop] { return drop_rows(drop, nullptr); };
}

Launch sum(Matrices& of, int count) {
  SumRows rows{.rows = of.size.rows,
               .channels = of.size.channels,
               .count = count,
               .matrices = {},
               .sums = {},
               .workspace = of.workspace(count)};
  for (int m = 0; m < count; ++m) {
    rows.matrices[m] = of.source(kBrain);
    rows.sums[m] = of.floats(of.size.channels);
  }
  return [rows] { return sum_rows(rows, nullptr); };
}

Launch cast(Matrices& of) {
  const Cast array{of.source(kFloat).elements, of.target(kBrain).elements, of.size.rows * of.size.channels};
  return [array] { return cast_arrays({&array, 1}, kFloat, kBrain, nullptr); };
}

QuantizeColumns packing(Matrices& of, int bits) {
  return {of.source(kBrain).elements, kBrain, of.layout(bits), of.packed(kBrain, bits), RandomSource{.shift = {1, 0}},
          Rounding::kDithered};
}

Launch pack(Matrices& of, int bits) {
  const QuantizeColumns columns = packing(of, bits);
  return [columns] { return quantize_columns(columns, nullptr); };
}

Launch unpack(Matrices& of, int bits, bool is_affine) {
  DequantizeColumns columns{of.packed(kBrain, bits), of.layout(bits), kBrain, of.target(kBrain).elements};
  if (is_affine) {
    columns.weight = of.floats(of.size.channels);
    columns.bias = of.floats(of.size.channels);
  }
  return [columns] { return dequantize_columns(columns, nullptr); };
}

Launch activate(Matrices& of, ActivationKind kind, bool is_gated) {
  const ActivateAndPackColumns columns{.x = packing(of, 5),
                                       .kind = kind,
                                       .gate = is_gated ? of.source(kBrain).elements : nullptr,
                                       .output = of.target(kBrain).elements};
  return [columns] { return activate_and_pack_columns(columns, nullptr); };
}

Launch activate_backward(Matrices& of, ActivationKind kind, bool is_gated) {
  ActivateColumnsBackward columns{.packed = of.packed(kBrain, 5),
                                  .layout = of.layout(5),
                                  .kind = kind,
                                  .type = kBrain,
                                  .grad = of.source(kBrain).elements,
                                  .gate = is_gated ? of.source(kBrain).elements : nullptr,
                                  .output = of.target(kBrain).elements,
                                  .grad_x = of.target(kBrain).elements};
  columns.grad_gate = is_gated ? of.target(kBrain).elements : nullptr;
  if (!is_gated) {
    columns.grad_bias = of.floats(of.size.channels);
    const double counted = of.bytes;
    columns.workspace = of.floats(column_activation_workspace(columns.layout));
    of.bytes = counted;
  }
  return [columns] { return activate_columns_backward(columns, nullptr); };
}

std::vector<Pass> passes() {
  return {
      {"residual + x", 1, [](Matrices& of) { return add(of, 0.0); }},
      {"residual + dropout(x)", 1, [](Matrices& of) { return add(of, 0.1); }},
      {"gradient of x, its sums", 1, [](Matrices& of) { return add_backward(of, 0.0); }},
      {"gradient of dropout(x), its sums", 1, [](Matrices& of) { return add_backward(of, 0.1); }},
      {"layer norm", 1, [](Matrices& of) { return normalize(of, true, false); }},
      {"layer norm, two outputs", 1, [](Matrices& of) { return normalize(of, true, true); }},
      {"the same of residual + dropout(x)", 1, [](Matrices& of) { return normalize(of, true, true, 0.1); }},
      {"RMS norm", 1, [](Matrices& of) { return normalize(of, false, false); }},
      {"layer norm in front, backward", 1, [](Matrices& of) { return normalize_backward(of, true, true); }},
      {"layer norm behind, backward", 1, [](Matrices& of) { return normalize_backward(of, true, false); }},
      {"layer norm of residual + x, backward", 1, [](Matrices& of) { return normalize_backward(of, true, true, 0.0); }},
      {"layer norm of residual + dropout(x), backward", 1,
       [](Matrices& of) { return normalize_backward(of, true, false, 0.1); }},
      {"RMS norm in front, backward", 1, [](Matrices& of) { return normalize_backward(of, false, true); }},
      {"sums over rows", 1, [](Matrices& of) { return sum(of, 1); }},
      {"sums over rows of three at once", 1, [](Matrices& of) { return sum(of, 3); }},
      {"cast", 1, cast},
      {"pack, 4 bits", 1, [](Matrices& of) { return pack(of, 4); }},
      {"pack, 6 bits", 1, [](Matrices& of) { return pack(of, 6); }},
      {"unpack, 4 bits", 1, [](Matrices& of) { return unpack(of, 4, false); }},
      {"unpack, 6 bits", 1, [](Matrices& of) { return unpack(of, 6, false); }},
      {"unpack, 4 bits, weight, bias", 1, [](Matrices& of) { return unpack(of, 4, true); }},
      {"GELU, pack, 5 bits", 4, [](Matrices& of) { return activate(of, ActivationKind::kGELU, false); }},
      {"GELU, backward", 4, [](Matrices& of) { return activate_backward(of, ActivationKind::kGELU, false); }},
      {"SwiGLU, pack, 5 bits", 4, [](Matrices& of) { return activate(of, ActivationKind::kSiLU, true); }},
      {"SwiGLU, backward", 4, [](Matrices& of) { return activate_backward(of, ActivationKind::kSiLU, true); }},
  };
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

class Clock {
 public:
  Clock() {
    check(cudaEventCreate(&begin_));
    check(cudaEventCreate(&end_));
  }
  ~Clock() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;

  /// Microseconds of a launch.
  double microseconds(const std::function<cudaError_t(size_t)>& launch) {
    check(cudaEventRecord(begin_));
    for (size_t i = 0; i < kLaunches; ++i) {
      check(launch(i % kTurns));
    }
    check(cudaEventRecord(end_));
    check(cudaEventSynchronize(end_));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return 1000.0 * milliseconds / kLaunches;
  }

 private:
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

nlohmann::ordered_json measure(const Pass& pass, const Size& size) {
  std::vector<std::unique_ptr<Matrices>> turns;
  std::vector<Launch> launches;
  std::vector<std::unique_ptr<GpuMemory>> from;
  std::vector<std::unique_ptr<GpuMemory>> to;
  for (int turn = 0; turn < kTurns; ++turn) {
    turns.push_back(std::make_unique<Matrices>(Size{size.rows, size.channels * pass.wider}));
    launches.push_back(pass.make(*turns.back()));
  }
  const auto half = static_cast<size_t>(turns.front()->bytes / 2);
  for (int turn = 0; turn < kTurns; ++turn) {
    from.emplace_back(std::make_unique<GpuMemory>(half));
    to.emplace_back(std::make_unique<GpuMemory>(half));
  }
  Clock clock;
  const auto own = [&](size_t turn) { return launches[turn](); };
  const auto copy = [&](size_t turn) {
    return cudaMemcpyAsync(to[turn]->as(), from[turn]->as(), half, cudaMemcpyDeviceToDevice, nullptr);
  };
  std::vector<double> own_times;
  std::vector<double> ratios;
  for (int sample = -2; sample < kSamples; ++sample) {
    const double microseconds = clock.microseconds(own);
    const double of_copy = clock.microseconds(copy);
    if (sample >= 0) {
      own_times.push_back(microseconds);
      ratios.push_back(100 * of_copy / microseconds);
    }
  }
  return {{"pass", pass.name},
          {"rows", size.rows},
          {"channels", size.channels * pass.wider},
          {"bytes", turns.front()->bytes},
          {"microseconds", median(own_times)},
          {"percent_of_copy", median(ratios)}};
}

Size size_of(const std::string& text) {
  const size_t cross = text.find('x');
  if (cross == std::string::npos) {
    throw std::runtime_error("--size needs ROWSxCHANNELS, got " + text);
  }
  return {std::stoll(text.substr(0, cross)), std::stoll(text.substr(cross + 1))};
}

void run(const std::vector<std::string>& arguments) {
  std::string output;
  std::string filter;
  std::vector<Size> sizes;
  for (size_t i = 0; i < arguments.size(); i += 2) {
    if (i + 1 == arguments.size()) {
      throw std::runtime_error(arguments[i] + " needs a value");
    }
    const std::string& value = arguments[i + 1];
    if (arguments[i] == "--output") {
      output = value;
    } else if (arguments[i] == "--filter") {
      filter = value;
    } else if (arguments[i] == "--size") {
      sizes.push_back(size_of(value));
    } else {
      throw std::runtime_error("unknown option " + arguments[i]);
    }
  }
  if (sizes.empty()) {
    sizes = {{16384, 1024}, {8192, 2048}, {16384, 4096}};
  }
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0));
  fmt::print("{}, bfloat16 branches, float32 streams\n", properties.name);
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const Size& size : sizes) {
    fmt::print("\n| {} x {} | MiB | us | % of a copy |\n|---|---|---|---|\n", size.rows, size.channels);
    for (const Pass& pass : passes()) {
      if (pass.name.find(filter) == std::string::npos) {
        continue;
      }
      rows.push_back(measure(pass, size));
      fmt::print("| {} | {:.0f} | {:.1f} | {:.0f} |\n", pass.name, rows.back()["bytes"].get<double>() / 1048576,
                 rows.back()["microseconds"].get<double>(), rows.back()["percent_of_copy"].get<double>());
      std::fflush(stdout);
    }
  }
  if (!output.empty()) {
    std::ofstream file(output);
    file << nlohmann::ordered_json{{"benchmark", "row_kernels"}, {"gpu", properties.name}, {"rows", rows}}.dump(1)
         << "\n";
    if (!file) {
      throw std::runtime_error("cannot write " + output);
    }
  }
}

}  // namespace
}  // namespace actnn::cuda

int main(int argc, char** argv) {
  try {
    actnn::cuda::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    fmt::print(stderr, "row_kernels_benchmark: {}\n", error.what());
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
