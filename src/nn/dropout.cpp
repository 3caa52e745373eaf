#include "actnn/nn/dropout.h"

#include <ATen/ops/dropout.h>

#include "actnn/autograd/dropout.h"
#include "src/nn/parameters.h"

namespace actnn::nn {

DropoutImpl::DropoutImpl(const TorchLayer& source) : _DropoutNd(source.options) { train(source.is_training()); }

at::Tensor DropoutImpl::forward(at::Tensor input) {
  if (!is_compressible(input.scalar_type())) {
    return options.inplace() ? at::dropout_(input, options.p(), is_training())
                             : at::dropout(input, options.p(), is_training());
  }
  return options.inplace() ? actnn::dropout_(input, options.p(), is_training())
                           : actnn::dropout(input, options.p(), is_training());
}

void DropoutImpl::pretty_print(std::ostream& stream) const {
  stream << "actnn::nn::Dropout(p=" << options.p() << ", inplace=" << (options.inplace() ? "true" : "false") << ')';
}

}  // namespace actnn::nn
