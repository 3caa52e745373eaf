#include "actnn/cuda/rows.h"

#include <cmath>
#include <memory>
#include <vector>

#include "actnn/core/dropout.h"
#include "actnn/core/layout.h"
#include "actnn/cuda/column_activation.h"
#include "actnn/cuda/columns.h"
#include "tests/cpp/cpu/test_data.h"
#include "tests/cpp/cuda/gpu_test.h"

namespace actnn::cuda {
namespace {

using cpu::as_elements;
using cpu::random_values;
using Numbers = std::vector<double>;

constexpr RandomState kState{77, 5};

/// Numbers as they are in a type, in GPU memory and as they should be.
struct Matrix {
  Matrix(int64_t count, ElementType own_type, uint64_t seed)
      : type(own_type), elements(as_elements(random_values(count, seed, false), type)), memory(elements) {}

  RowSource source() const { return {memory.as<void>(), type}; }
  Numbers numbers() const { return numbers_of(elements, type); }

  static Numbers numbers_of(const std::vector<uint8_t>& elements, ElementType type) {
    Numbers numbers;
    for (size_t i = 0; i < elements.size() / static_cast<size_t>(element_size(type)); ++i) {
      if (type == ElementType::kFloat32) {
        numbers.push_back(reinterpret_cast<const float*>(elements.data())[i]);
      } else {
        const uint16_t bits = reinterpret_cast<const uint16_t*>(elements.data())[i];
        numbers.push_back(type == ElementType::kFloat16 ? to_float(Float16{bits}) : to_float(BFloat16{bits}));
      }
    }
    return numbers;
  }

  ElementType type;
  std::vector<uint8_t> elements;
  GpuBytes memory;
};

struct Result {
  Result(int64_t count, ElementType own_type)
      : type(own_type), memory(static_cast<size_t>(count * element_size(own_type))) {}

  RowTarget target() const { return {memory.as<void>(), type}; }

  ElementType type;
  GpuBytes memory;
};

/// A rounding of the type, and what sums in float32 lose.
double rounding_of(ElementType type) {
  return type == ElementType::kFloat32 ? 2e-5 : type == ElementType::kFloat16 ? 1e-3 : 8e-3;
}

void expect_near(const Result& result, const Numbers& expected, const std::string& what, double scale = 1.0,
                 double relative = 0.0) {
  const Numbers found = Matrix::numbers_of(result.memory.read(), result.type);
  relative = std::max(relative, rounding_of(result.type));
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_NEAR(found[i], expected[i], relative * (std::abs(expected[i]) + 0.05 * scale)) << what << ", element " << i;
  }
}

void expect_near(const GpuArray<float>& found, const Numbers& expected, double scale, const std::string& what) {
  const std::vector<float> numbers = found.read();
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(numbers[i], expected[i], 1e-4 * scale) << what << ", channel " << i;
  }
}

struct Case {
  int64_t rows;
  int64_t channels;
  ElementType stream;  ///< of sums, and of the gradient of the input
  ElementType branch;  ///< of products
};

std::ostream& operator<<(std::ostream& out, const Case& one) {
  return out << one.rows << "x" << one.channels << " " << static_cast<int>(one.stream) << static_cast<int>(one.branch);
}

constexpr auto kFloat = ElementType::kFloat32;
constexpr auto kHalf = ElementType::kFloat16;
constexpr auto kBrain = ElementType::kBFloat16;

using Rows = GpuTestOf<Case>;
INSTANTIATE_TEST_SUITE_P(All, Rows,
                         testing::Values(Case{1, 8, kFloat, kFloat}, Case{70, 64, kFloat, kBrain},
                                         Case{301, 96, kBrain, kBrain}, Case{33, 100, kHalf, kHalf},
                                         Case{19, 1023, kFloat, kHalf}, Case{1000, 768, kBrain, kBrain},
                                         Case{517, 1024, kFloat, kBrain}, Case{40, 5120, kBrain, kBrain},
                                         Case{9, 16384, kFloat, kBrain}));

TEST_P(Rows, AreNormalized) {
  const auto [rows, channels, stream, branch] = GetParam();
  const int64_t count = rows * channels;
  const Matrix x(count, branch, 1);
  const Matrix residual(count, stream, 2);
  const Matrix weight(channels, kFloat, 3);
  const Matrix bias(channels, kFloat, 4);
  const double dropout = channels % kDropoutQuad == 0 ? 0.25 : 0.0;
  for (const bool is_centered : {true, false}) {
    const Result sum(count, stream);
    const Result normalized(count, branch);
    const Result output(count, stream);
    const Result second_output(count, branch);
    const GpuArray<float> rstd(rows);
    check(normalize_rows({.rows = rows,
                          .channels = channels,
                          .is_centered = is_centered,
                          .eps = 1e-5,
                          .x = x.source(),
                          .residual = residual.source(),
                          .dropout = dropout,
                          .random = {.shift = kState},
                          .weight = weight.source(),
                          .bias = bias.source(),
                          .sum = sum.target(),
                          .normalized = normalized.target(),
                          .output = output.target(),
                          .second_output = second_output.target(),
                          .rstd = rstd.data()},
                         nullptr));
    // The sums are those that were stored.
    const DropoutScale scale(dropout);
    Numbers sums = residual.numbers();
    const Numbers numbers = x.numbers();
    for (size_t i = 0; i < sums.size(); ++i) {
      const PhiloxBlock block = kState.block(i / kDropoutQuad);
      const auto number = static_cast<float>(numbers[i]);
      sums[i] += dropout > 0.0 ? scale.apply(number, block.word[i % kDropoutQuad]) : number;
    }
    expect_near(sum, sums, "sum", 20.0, rounding_of(branch));  // dropout's results are rounded
    const Numbers stored = Matrix::numbers_of(sum.memory.read(), stream);
    Numbers expected;
    Numbers expected_output;
    Numbers expected_rstd;
    const Numbers weights = weight.numbers();
    const Numbers biases = bias.numbers();
    for (int64_t row = 0; row < rows; ++row) {
      const auto begin = stored.begin() + row * channels;
      double mean = 0.0;
      for (int64_t c = 0; c < channels; ++c) {
        mean += is_centered ? begin[c] / static_cast<double>(channels) : 0.0;
      }
      double square = 0.0;
      for (int64_t c = 0; c < channels; ++c) {
        square += (begin[c] - mean) * (begin[c] - mean) / static_cast<double>(channels);
      }
      expected_rstd.push_back(1.0 / std::sqrt(square + 1e-5));
      for (int64_t c = 0; c < channels; ++c) {
        expected.push_back((begin[c] - mean) * expected_rstd.back());
        expected_output.push_back(expected.back() * weights[static_cast<size_t>(c)] + biases[static_cast<size_t>(c)]);
      }
    }
    expect_near(normalized, expected, "normalized");
    expect_near(output, expected_output, "output");
    expect_near(second_output, expected_output, "second output");
    expect_near(rstd, expected_rstd, 1.0 + *std::max_element(expected_rstd.begin(), expected_rstd.end()), "rstd");
  }
}

TEST_P(Rows, HaveGradientsThroughNorms) {
  const auto [rows, channels, stream, branch] = GetParam();
  const int64_t count = rows * channels;
  const Matrix grad(count, branch, 1);
  const Matrix second(count, stream, 2);
  const Matrix normalized(count, branch, 3);
  const Matrix weight(channels, kFloat, 4);
  const Matrix residual(count, stream, 5);
  const Matrix rstd(rows, kFloat, 6);
  for (const bool is_centered : {true, false}) {
    const Result grad_input(count, stream);
    const GpuArray<float> grad_weight(channels);
    const GpuArray<float> grad_bias(channels);
    const GpuArray<float> workspace(column_sums_workspace(rows, channels, 2));
    check(normalize_rows_backward({.rows = rows,
                                   .channels = channels,
                                   .is_centered = is_centered,
                                   .grad = grad.source(),
                                   .second_grad = second.source(),
                                   .normalized = normalized.source(),
                                   .weight = weight.source(),
                                   .rstd = rstd.memory.as<float>(),
                                   .residual_grad = residual.source(),
                                   .grad_input = grad_input.target(),
                                   .grad_weight = grad_weight.data(),
                                   .grad_bias = grad_bias.data(),
                                   .workspace = workspace.data()},
                                  nullptr));
    const Numbers g = grad.numbers();
    const Numbers g2 = second.numbers();
    const Numbers n = normalized.numbers();
    const Numbers w = weight.numbers();
    const Numbers added = residual.numbers();
    const Numbers r = rstd.numbers();
    Numbers input;
    Numbers weights(static_cast<size_t>(channels), 0.0);
    Numbers biases(static_cast<size_t>(channels), 0.0);
    for (int64_t row = 0; row < rows; ++row) {
      double mean = 0.0;
      double slope = 0.0;
      for (int64_t c = 0; c < channels; ++c) {
        const auto i = static_cast<size_t>(row * channels + c);
        const double sum = g[i] + g2[i];
        weights[static_cast<size_t>(c)] += sum * n[i];
        biases[static_cast<size_t>(c)] += sum;
        mean += is_centered ? sum * w[static_cast<size_t>(c)] / static_cast<double>(channels) : 0.0;
        slope += sum * w[static_cast<size_t>(c)] * n[i] / static_cast<double>(channels);
      }
      for (int64_t c = 0; c < channels; ++c) {
        const auto i = static_cast<size_t>(row * channels + c);
        input.push_back(r[static_cast<size_t>(row)] *
                            ((g[i] + g2[i]) * w[static_cast<size_t>(c)] - mean - n[i] * slope) +
                        added[i]);
      }
    }
    expect_near(grad_input, input, "gradient", 30.0);
    expect_near(grad_weight, weights, 10.0 + static_cast<double>(rows), "weight");
    expect_near(grad_bias, biases, 10.0 + static_cast<double>(rows), "bias");
  }
}

/// Of a norm of sums, in its pass: what the sum's gradient, as it is stored, becomes by itself.
TEST_P(Rows, HandTheGradientsOfSumsOnToBranches) {
  const auto [rows, channels, stream, branch] = GetParam();
  const int64_t count = rows * channels;
  const Matrix grad(count, branch, 1);
  const Matrix normalized(count, branch, 2);
  const Matrix weight(channels, kFloat, 3);
  const Matrix residual(count, stream, 4);
  const Matrix rstd(rows, kFloat, 5);
  for (const double dropout : {0.0, 0.25}) {
    if (dropout > 0.0 && channels % kDropoutQuad != 0) {
      continue;
    }
    const Result grad_input(count, stream);
    const Result grad_branch(count, branch);
    const GpuArray<float> branch_sums(channels);
    const GpuArray<float> workspace(column_sums_workspace(rows, channels, 3));
    NormalizeRowsBackward arguments{.rows = rows,
                                    .channels = channels,
                                    .is_centered = true,
                                    .grad = grad.source(),
                                    .normalized = normalized.source(),
                                    .weight = weight.source(),
                                    .rstd = rstd.memory.as<float>(),
                                    .residual_grad = residual.source(),
                                    .grad_input = grad_input.target(),
                                    .has_branch = true,
                                    .dropout = dropout,
                                    .random = {.shift = kState},
                                    .grad_branch = grad_branch.target(),
                                    .branch_sums = branch_sums.data(),
                                    .workspace = workspace.data()};
    check(normalize_rows_backward(arguments, nullptr));
    const std::vector<uint8_t> with_branch = grad_input.memory.read();
    const Result alone(count, branch);
    const GpuArray<float> alone_sums(channels);
    check(drop_rows({.rows = rows,
                     .channels = channels,
                     .grad = {grad_input.memory.as<void>(), stream},
                     .dropout = dropout,
                     .random = {.shift = kState},
                     .output = alone.target(),
                     .sums = alone_sums.data(),
                     .workspace = workspace.data()},
                    nullptr));
    EXPECT_EQ(grad_branch.memory.read(), alone.memory.read());
    const std::vector<float> sums = alone_sums.read();
    expect_near(branch_sums, Numbers(sums.begin(), sums.end()), 1.0 + static_cast<double>(rows), "sums");

    arguments.has_branch = false;
    check(normalize_rows_backward(arguments, nullptr));
    EXPECT_EQ(grad_input.memory.read(), with_branch);

    // Without memory of its own, sums alone.
    if (stream == branch && dropout == 0.0) {
      const GpuArray<float> sums_alone(channels);
      arguments.has_branch = true;
      arguments.grad_branch.elements = nullptr;
      arguments.branch_sums = sums_alone.data();
      check(normalize_rows_backward(arguments, nullptr));
      EXPECT_EQ(sums_alone.read(), branch_sums.read());
    }
  }
}

struct Number {
  double y;
  double derivative;
};

Number activated(ActivationKind kind, double x) {
  const double pi = 3.14159265358979323846;
  if (kind == ActivationKind::kGELU) {
    const double share = 0.5 * (1.0 + std::erf(x / std::sqrt(2.0)));
    return {x * share, share + x * std::exp(-0.5 * x * x) / std::sqrt(2.0 * pi)};
  }
  if (kind == ActivationKind::kGELUTanh) {
    const double t = std::tanh(std::sqrt(2.0 / pi) * (x + 0.044715 * x * x * x));
    return {0.5 * x * (1.0 + t),
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * std::sqrt(2.0 / pi) * (1.0 + 3.0 * 0.044715 * x * x)};
  }
  const double share = 1.0 / (1.0 + std::exp(-x));
  return {x * share, share * (1.0 + x * (1.0 - share))};
}

/// The result and the gradients of x and of the gate, of which there may be none.
struct Activated {
  Numbers y;
  Numbers dx;
  Numbers dgate;
};

Activated activated_rows(ActivationKind kind, const Numbers& x, const Numbers& gate, const Numbers& grad) {
  Activated result;
  for (size_t i = 0; i < x.size(); ++i) {
    const Number number = activated(kind, x[i]);
    const double factor = gate.empty() ? 1.0 : gate[i];
    result.y.push_back(number.y * factor);
    result.dx.push_back(number.derivative * factor * grad[i]);
    result.dgate.push_back(number.y * grad[i]);
  }
  return result;
}

TEST_P(Rows, HaveGradientsThroughActivationsAndGates) {
  const auto [rows, channels, stream, branch] = GetParam();
  const int64_t count = rows * channels;
  const Matrix x(count, branch, 1);
  const Matrix gate(count, branch, 2);
  const Matrix grad(count, stream, 3);
  for (const ActivationKind kind : {ActivationKind::kGELU, ActivationKind::kGELUTanh, ActivationKind::kSiLU}) {
    for (const bool is_gated : {false, true}) {
      const Result grad_x(count, branch);
      const Result grad_gate(count, branch);
      const GpuArray<float> grad_bias(channels);
      const GpuArray<float> workspace(column_sums_workspace(rows, channels, 1));
      check(activate_rows_backward({.rows = rows,
                                    .channels = channels,
                                    .kind = kind,
                                    .x = x.source(),
                                    .gate = is_gated ? gate.source() : RowSource{},
                                    .grad = grad.source(),
                                    .grad_x = grad_x.target(),
                                    .grad_gate = is_gated ? grad_gate.target() : RowTarget{},
                                    .grad_bias = grad_bias.data(),
                                    .workspace = workspace.data()},
                                   nullptr));
      const Numbers numbers = x.numbers();
      const Numbers gates = gate.numbers();
      const Numbers gradients = grad.numbers();
      const auto [y, dx, dgate] = activated_rows(kind, numbers, is_gated ? gates : Numbers(), gradients);
      expect_near(grad_x, dx, "gradient", 30.0);
      if (is_gated) {
        expect_near(grad_gate, dgate, "gradient of the gate", 30.0);
        const Result product(count, branch);
        check(gate_rows({rows, channels, kind, x.source(), gate.source(), product.target()}, nullptr));
        expect_near(product, y, "product", 10.0);
      }
      Numbers biases(static_cast<size_t>(channels), 0.0);
      const Numbers rounded = Matrix::numbers_of(grad_x.memory.read(), branch);
      for (size_t i = 0; i < rounded.size(); ++i) {
        biases[i % static_cast<size_t>(channels)] += rounded[i];
      }
      expect_near(grad_bias, biases, 10.0 + static_cast<double>(rows), "bias");
    }
  }
}

/// In the pass that packs them: the bytes that packing alone gives, and the activation.
TEST_P(Rows, AreActivatedAndPacked) {
  const auto [rows, channels, stream, type] = GetParam();
  const int64_t count = rows * channels;
  if (channels % 8 != 0 || type == kFloat) {
    GTEST_SKIP() << "such rows are packed by themselves";
  }
  const ColumnLayout<int64_t> layout{rows, channels, kDefaultGroupRows, 5, 0};
  const Matrix x(count, type, 1);
  const Matrix gate(count, type, 2);
  const auto bytes = static_cast<size_t>(layout.bytes());
  const auto packing_into = [&x, &layout, type = type](const GpuBytes& packed) {
    return QuantizeColumns{.elements = x.memory.as<void>(),
                           .type = type,
                           .layout = layout,
                           .packed = packed.as<uint8_t>(),
                           .random = {.shift = kState},
                           .rounding = Rounding::kDithered};
  };
  const GpuBytes alone(bytes);
  check(quantize_columns(packing_into(alone), nullptr));
  for (const ActivationKind kind : {ActivationKind::kGELU, ActivationKind::kGELUTanh, ActivationKind::kSiLU}) {
    for (const bool is_gated : {false, true}) {
      const GpuBytes packed(bytes);
      const Result output(count, type);
      check(activate_and_pack_columns({.x = packing_into(packed),
                                       .kind = kind,
                                       .gate = is_gated ? gate.memory.as<void>() : nullptr,
                                       .output = output.memory.as<void>()},
                                      nullptr));
      EXPECT_EQ(packed.read(), alone.read());
      const Numbers numbers = x.numbers();
      const Numbers gates = gate.numbers();
      Numbers y;
      for (size_t i = 0; i < numbers.size(); ++i) {
        y.push_back(activated(kind, numbers[i]).y * (is_gated ? gates[i] : 1.0));
      }
      expect_near(output, y, "output", 10.0);
    }
  }
}

/// In the pass that unpacks them, as if they had been unpacked before, but for the rounding that this takes.
TEST_P(Rows, HaveGradientsThroughActivationsOfCopies) {
  const auto [rows, channels, stream, type] = GetParam();
  const int64_t count = rows * channels;
  if (channels % 4 != 0) {
    GTEST_SKIP() << "such rows are unpacked before";
  }
  const ColumnLayout<int64_t> layout{rows, channels, kDefaultGroupRows, 5, 0};
  const Matrix exact(count, type, 1);
  const Matrix gate(count, type, 2);
  const Matrix grad(count, type, 3);
  const GpuBytes packed(static_cast<size_t>(layout.bytes()));
  check(quantize_columns({.elements = exact.memory.as<void>(),
                          .type = type,
                          .layout = layout,
                          .packed = packed.as<uint8_t>(),
                          .random = {.shift = kState},
                          .rounding = Rounding::kDithered},
                         nullptr));
  const Result x(count, type);
  check(dequantize_columns(
      {.packed = packed.as<uint8_t>(), .layout = layout, .type = type, .elements = x.memory.as<void>()}, nullptr));
  const Numbers numbers = Matrix::numbers_of(x.memory.read(), type);
  const Numbers gates = gate.numbers();
  const Numbers gradients = grad.numbers();
  for (const ActivationKind kind : {ActivationKind::kGELU, ActivationKind::kGELUTanh, ActivationKind::kSiLU}) {
    for (const bool is_gated : {false, true}) {
      const Result output(count, type);
      const Matrix grad_x(count, type, 3);  // the memory of the gradient
      const Result grad_gate(count, type);
      const GpuArray<float> grad_bias(channels);
      const GpuArray<float> workspace(column_activation_workspace(layout));
      check(activate_columns_backward({.packed = packed.as<uint8_t>(),
                                       .layout = layout,
                                       .kind = kind,
                                       .type = type,
                                       .grad = grad_x.memory.as<void>(),
                                       .gate = is_gated ? gate.memory.as<void>() : nullptr,
                                       .output = output.memory.as<void>(),
                                       .grad_x = grad_x.memory.as<void>(),
                                       .grad_gate = is_gated ? grad_gate.memory.as<void>() : nullptr,
                                       .grad_bias = grad_bias.data(),
                                       .workspace = workspace.data()},
                                      nullptr));
      const auto [y, dx, dgate] = activated_rows(kind, numbers, is_gated ? gates : Numbers(), gradients);
      const Numbers found = Matrix::numbers_of(grad_x.memory.read(), type);
      Numbers biases(static_cast<size_t>(channels), 0.0);
      for (size_t i = 0; i < found.size(); ++i) {
        ASSERT_NEAR(found[i], dx[i], 2 * rounding_of(type) * (std::abs(dx[i]) + 1.5)) << "gradient, element " << i;
        biases[i % static_cast<size_t>(channels)] += found[i];
      }
      expect_near(grad_bias, biases, 10.0 + static_cast<double>(rows), "bias");
      expect_near(output, y, "output", 30.0);
      if (is_gated) {
        expect_near(grad_gate, dgate, "gradient of the gate", 30.0);
      }
    }
  }
}

TEST_P(Rows, AreSummed) {
  const auto [rows, channels, stream, branch] = GetParam();
  for (int count = 1; count <= kMostSummed; ++count) {
    const GpuArray<float> workspace(column_sums_workspace(rows, channels, count));
    SumRows arguments{
        .rows = rows, .channels = channels, .count = count, .matrices = {}, .sums = {}, .workspace = workspace.data()};
    std::vector<std::unique_ptr<Matrix>> matrices;
    std::vector<std::unique_ptr<GpuArray<float>>> sums;
    for (int m = 0; m < count; ++m) {
      const ElementType type = m % 2 == 0 ? branch : stream;
      matrices.push_back(std::make_unique<Matrix>(rows * channels, type, static_cast<uint64_t>(m) + 1));
      sums.push_back(std::make_unique<GpuArray<float>>(channels));
      arguments.matrices[m] = matrices.back()->source();
      arguments.sums[m] = sums.back()->data();
    }
    check(sum_rows(arguments, nullptr));
    for (int m = 0; m < count; ++m) {
      const Numbers numbers = matrices[static_cast<size_t>(m)]->numbers();
      Numbers expected(static_cast<size_t>(channels), 0.0);
      for (size_t i = 0; i < numbers.size(); ++i) {
        expected[i % static_cast<size_t>(channels)] += numbers[i];
      }
      expect_near(*sums[static_cast<size_t>(m)], expected, 10.0 + static_cast<double>(rows), "sum");
    }
  }
}

}  // namespace
}  // namespace actnn::cuda
