#pragma once

#include <ATen/core/Tensor.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <ostream>

#include "actnn/nn/quantization_options.h"
#include "actnn/nn/quantized_module.h"

namespace actnn::nn {

/// Options of Linear: those of `torch::nn::LinearOptions` and the quantization of the saved input.
struct LinearOptions : QuantizationOptions<LinearOptions> {
  LinearOptions(int64_t in_features, int64_t out_features) : in_features_(in_features), out_features_(out_features) {}

  /// The options of a torch layer.
  explicit LinearOptions(const torch::nn::LinearOptions& other)
      : in_features_(other.in_features()), out_features_(other.out_features()), bias_(other.bias()) {}

  TORCH_ARG(int64_t, in_features);
  TORCH_ARG(int64_t, out_features);
  TORCH_ARG(bool, bias) = true;
};

/// `torch::nn::Linear` that keeps a quantized copy of its input for backward. `input`: [..., in_features], float32,
/// float16 or bfloat16. Result and gradients of input and bias are torch's, bit for bit; the gradient of weight is
/// unbiased. Parameters, their names, their initialization and the archives are those of torch's layer.
class LinearImpl : public torch::nn::Cloneable<LinearImpl>, public QuantizedModule {
 public:
  using TorchLayer = torch::nn::LinearImpl;

  LinearImpl(int64_t in_features, int64_t out_features) : LinearImpl(LinearOptions(in_features, out_features)) {}
  explicit LinearImpl(const LinearOptions& options_);

  /// A layer over the very tensors of `source`: its parameters (not copies), options and training mode.
  explicit LinearImpl(const TorchLayer& source, const Quantization& quantization = {});

  at::Tensor forward(const at::Tensor& input);

  void reset() override;
  void reset_parameters();
  void pretty_print(std::ostream& stream) const override;
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;
  Quantization& quantization() noexcept override { return options.quantization(); }

  LinearOptions options;
  at::Tensor weight;  ///< [out_features, in_features]
  at::Tensor bias;    ///< [out_features], or undefined

 private:
  std::optional<SchemeOptions> scheme_options() const override { return SchemeOptions{.channel_dim = -1}; }
};
TORCH_MODULE(Linear);

}  // namespace actnn::nn
