#pragma once

// What every file that includes torch pays for: parsed once a build. Files include what they use all the same:
// clang-tidy reads them without this header. torch/nn is left out: it makes loading slower for all and no file quicker.
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>
