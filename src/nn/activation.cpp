#include "actnn/nn/activation.h"

#include <ATen/ops/relu.h>

#include "actnn/autograd/relu.h"
#include "src/nn/parameters.h"

namespace actnn::nn {

ReLUImpl::ReLUImpl(const TorchLayer& source) : options(source.options) { train(source.is_training()); }

at::Tensor ReLUImpl::forward(at::Tensor input) {
  if (!is_compressible(input.scalar_type())) {
    return options.inplace() ? at::relu_(input) : at::relu(input);
  }
  return options.inplace() ? actnn::relu_(input) : actnn::relu(input);
}

void ReLUImpl::pretty_print(std::ostream& stream) const {
  stream << "actnn::nn::ReLU(" << (options.inplace() ? "inplace=true" : "") << ')';
}

}  // namespace actnn::nn
