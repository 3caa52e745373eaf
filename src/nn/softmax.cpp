#include "actnn/nn/softmax.h"

#include <ATen/ops/log_softmax.h>
#include <ATen/ops/softmax.h>

#include "actnn/autograd/softmax.h"
#include "src/nn/parameters.h"
#include "src/nn/quantized_activation.h"

namespace actnn::nn {

at::Tensor SoftmaxImpl::forward(const at::Tensor& input) {
  return is_compressible(input.scalar_type()) ? actnn::softmax(input, options.dim(), options.quantization())
                                              : at::softmax(input, options.dim());
}

at::Tensor Softmax2dImpl::forward(const at::Tensor& input) {
  TORCH_CHECK_VALUE(input.dim() == 3 || input.dim() == 4, kName,
                    ": input must be [N, C, H, W] or [C, H, W], got shape ", input.sizes());
  return is_compressible(input.scalar_type()) ? actnn::softmax(input, -3, options.quantization())
                                              : at::softmax(input, -3);
}

at::Tensor LogSoftmaxImpl::forward(const at::Tensor& input) {
  return is_compressible(input.scalar_type()) ? actnn::log_softmax(input, options.dim(), options.quantization())
                                              : at::log_softmax(input, options.dim());
}

void SoftmaxImpl::pretty_print(std::ostream& stream) const {
  stream << kName << "(dim=" << options.dim() << ", bits=" << options.bits() << ')';
}

void Softmax2dImpl::pretty_print(std::ostream& stream) const { stream << kName << "(bits=" << options.bits() << ')'; }

void LogSoftmaxImpl::pretty_print(std::ostream& stream) const {
  stream << kName << "(dim=" << options.dim() << ", bits=" << options.bits() << ')';
}

template class detail::QuantizedActivationImpl<SoftmaxOptions, SoftmaxImpl, torch::nn::SoftmaxImpl>;
template class detail::QuantizedActivationImpl<Softmax2dOptions, Softmax2dImpl, torch::nn::Softmax2dImpl>;
template class detail::QuantizedActivationImpl<LogSoftmaxOptions, LogSoftmaxImpl, torch::nn::LogSoftmaxImpl>;

}  // namespace actnn::nn
