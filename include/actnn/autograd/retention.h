#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <optional>

namespace actnn {

/// How an activation is saved for backward, apart from its quantization. The default: quantized with one bit width,
/// where it is.
struct Retention {
  /// uint8 [N], 1..8: the bits of each sample of an input whose first dimension counts samples, instead of the layer's
  /// bits. None: one width for all.
  std::optional<at::Tensor> sample_bits = std::nullopt;

  /// The budget of `sample_bits`: their sum, or more. The host knows it without reading them, and sizes the buffer by
  /// it.
  c10::SymInt total_bits = 0;

  /// false: the activation itself is saved, as torch's layers do.
  bool compress = true;

  /// Save the unpacked copy, in floating point: the same values in backward, but no less memory. For experiments.
  bool simulate = false;

  /// Keep the data in pinned host memory (`actnn/ops/offload.h`). Acts on CUDA tensors; not while a compiler traces.
  bool offload = false;
};

/// How a convolution is carried out; changes neither result nor gradients beyond rounding.
struct ConvolutionExecution {
  /// Whether cuDNN may try algorithms and keep the fastest, in forward and backward of this call. None:
  /// `torch.backends.cudnn.benchmark`.
  std::optional<bool> cudnn_benchmark = std::nullopt;

  /// Bytes. When input, output gradient and input gradient together exceed them, backward goes through the batch in
  /// parts that do not (a part has one sample at least), which bounds its workspace. None, or while a compiler traces:
  /// at once.
  std::optional<int64_t> pipeline_threshold = std::nullopt;
};

}  // namespace actnn
