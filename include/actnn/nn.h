#pragma once

/// \file
/// All layers and the conversion of modules.

#include "actnn/nn/activation.h"
#include "actnn/nn/batch_norm.h"
#include "actnn/nn/conversion_report.h"
#include "actnn/nn/convert.h"
#include "actnn/nn/convolution.h"
#include "actnn/nn/dropout.h"
#include "actnn/nn/embedding.h"
#include "actnn/nn/linear.h"
#include "actnn/nn/normalization.h"
#include "actnn/nn/pooling.h"
#include "actnn/nn/quantization_options.h"
#include "actnn/nn/quantized_activation.h"
#include "actnn/nn/quantized_module.h"
#include "actnn/nn/residual_block.h"
#include "actnn/nn/softmax.h"
#include "actnn/nn/transformer.h"
