#pragma once

/// \file
/// The whole library: layers and conversion (actnn/nn.h), differentiable functions (actnn/autograd), ops on packed tensors
/// (actnn/ops), bit allocation (actnn/policy) and the allocation observer (actnn/memory).

#include "actnn/autograd/batch_norm.h"
#include "actnn/autograd/convolution.h"
#include "actnn/autograd/dropout.h"
#include "actnn/autograd/linear.h"
#include "actnn/autograd/pooling.h"
#include "actnn/autograd/relu.h"
#include "actnn/autograd/sync_batch_norm.h"
#include "actnn/memory/observer.h"
#include "actnn/nn.h"
#include "actnn/ops/dropout.h"
#include "actnn/ops/mask.h"
#include "actnn/ops/max_pool.h"
#include "actnn/ops/pack_codes.h"
#include "actnn/ops/quantization.h"
#include "actnn/ops/quantize.h"
#include "actnn/ops/random.h"
#include "actnn/ops/sample_statistics.h"
#include "actnn/policy/bit_allocation.h"
#include "actnn/policy/bit_allocation_dp.h"
