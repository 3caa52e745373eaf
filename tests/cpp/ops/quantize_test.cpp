#include "actnn/ops/quantize.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <string>

#include "actnn/core/layout.h"
#include "actnn/ops/dropout.h"
#include "actnn/ops/mask.h"
#include "actnn/ops/random.h"

namespace actnn {
namespace {

TEST(Quantize, RoundTripsWithinAStepFromCpp) {
  const at::Tensor x = at::randn({3, 100});
  const Quantization quantization{.bits = 8};
  const at::Tensor packed = quantize(x, quantization, make_rng_state(1));
  EXPECT_EQ(packed.numel(), packed_bytes<int64_t>(300, 8, 256));
  const at::Tensor y = dequantize(packed, x.sym_sizes(), x.sym_strides(), x.scalar_type(), quantization);
  EXPECT_LT((x - y).abs().max().item().toFloat(), 8.0F / 255.0F);
}

TEST(Quantize, ErrorsNameTheArgumentTheExpectedAndTheFound) {
  try {
    quantize(at::randn({4}), {.bits = 11}, make_rng_state(1));
    FAIL() << "accepted 11 bits";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what_without_backtrace()).find("actnn::quantize: bits must be in 1..8, got 11"),
              std::string::npos)
        << error.what_without_backtrace();
  }
}

TEST(Quantize, WorksOnMetaTensors) {
  const auto meta = at::TensorOptions().device(at::kMeta);
  const at::Tensor x = at::empty({1024, 1024, 1024, 3}, meta.dtype(at::kBFloat16));
  const at::Tensor packed = quantize(x, {.bits = 2}, at::empty({2}, meta.dtype(at::kLong)));
  EXPECT_EQ(packed.numel(), packed_bytes<int64_t>(int64_t{3} << 30, 2, 256));
}

TEST(Dropout, TheUsedStateReplaysTheMask) {
  const at::Tensor x = at::randn({1000});
  const at::Tensor state = make_rng_state(9);
  const auto [output, used] = dropout_forward(x, 0.5, state);
  EXPECT_EQ(state[1].item<int64_t>(), 1);
  EXPECT_EQ(used[1].item<int64_t>(), 0);
  EXPECT_TRUE(output.equal(apply_dropout(x, 0.5, used, x.sym_strides())));
}

TEST(Relu, PacksOneBitPerElement) {
  const at::Tensor x = at::randn({33});
  const auto [output, mask] = relu_pack(x);
  EXPECT_TRUE(output.equal(x.clamp_min(0)));
  EXPECT_EQ(mask.numel(), 5);
  EXPECT_TRUE(unpack_mask(mask, x.sym_sizes(), x.sym_strides()).equal(x > 0));
}

}  // namespace
}  // namespace actnn
