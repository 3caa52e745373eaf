#pragma once

#include <utility>
#include <vector>

#include "tests/cpp/cpu/norm_act_problem.h"

/// \file
/// The passes of normalization with activation, and their scalar formulas.

namespace actnn::cpu {

struct Result {
  std::vector<float> y;
  Bytes packed;
};

inline Result run(const NormActProblem& problem, const Bytes& x, const Bytes& residual = {}) {
  Bytes y(x.size());
  Result result{{}, empty_packed(problem.layout, problem.random, problem.rounding)};
  const std::vector<NormActChannel> channels = problem.channels();
  norm_act({.x = x.data(),
            .residual = residual.empty() ? nullptr : residual.data(),
            .y = y.data(),
            .type = problem.type,
            .layout = problem.layout,
            .channels = channels.data(),
            .activation = problem.activation,
            .keeps_below = problem.keeps_below,
            .packed = result.packed.data(),
            .random = problem.random,
            .rounding = problem.rounding},
           0, problem.pieces());
  result.y = as_floats(y, problem.type);
  return result;
}

inline NormActBackward backward_of(const NormActProblem& problem, const Bytes& packed, const Bytes* grad = nullptr) {
  return {.packed = packed.data(),
          .layout = problem.layout,
          .grad = grad ? grad->data() : nullptr,
          .second_grad = nullptr,
          .type = problem.type,
          .activation = problem.activation};
}

inline std::vector<float> output(const NormActProblem& problem, const Bytes& packed,
                                 const std::vector<DecodeMap>& channels) {
  Bytes y(static_cast<size_t>(problem.count() * element_size(problem.type)));
  norm_act_output(backward_of(problem, packed), channels.data(), y.data(), 0, problem.pieces());
  return as_floats(y, problem.type);
}

/// Copies are read as y of an identity, of float32 elements.
inline std::vector<float> copies_of(NormActProblem problem, const Bytes& packed) {
  std::vector<DecodeMap> channels = problem.decode();
  for (DecodeMap& channel : channels) {
    channel.a = 1.0F;
    channel.b = 0.0F;
  }
  problem.activation = {};
  return output(problem, packed, channels);
}

inline float z_of(const NormActChannel& channel, float x) {
  const float scaled = channel.z_scale * x;
  return scaled + channel.z_shift;
}

inline float s_of(const NormActChannel& channel, float x, float z) {
  const float scaled = channel.s_scale * (channel.linear != 0.0F ? x : z);
  return scaled + channel.s_shift;
}

/// The step of an element's grid, on its side.
inline float step_of(const NormActProblem& problem, const Bytes& packed, int64_t index, bool side) {
  const int64_t channel = index % problem.layout.channels;
  const int64_t block = index / problem.layout.channels / problem.layout.group_rows;
  GroupParameters parameters;
  std::memcpy(&parameters, packed.data() + kHeaderBytes + (block * problem.layout.channels + channel) * 4, 4);
  const bool split = problem.channels()[static_cast<size_t>(channel)].linear == 0.0F && problem.layout.masks != 0;
  return step_to_float(split && side ? parameters.minimum : parameters.step);
}

inline NormActProblem leaky(std::pair<int64_t, int64_t> shape, ElementType type, int bits, float slope) {
  return {.layout = {.rows = shape.first, .channels = shape.second, .group_rows = 128, .bits = bits, .masks = 1},
          .type = type,
          .activation = {ActivationFunction::kLeakyReLU, slope}};
}

inline float activated(const FusedActivation& activation, float z) {
  switch (activation.function) {
    case ActivationFunction::kIdentity:
      return z;
    case ActivationFunction::kLeakyReLU:
      return leaky_relu(z, z > 0.0F, activation.slope);
    case ActivationFunction::kReLU6:
      return relu6(z);
    case ActivationFunction::kSiLU:
      return activate<ActivationFunction::kSiLU>(z).y;
    default:
      return activate<ActivationFunction::kHardswish>(z).y;
  }
}

}  // namespace actnn::cpu
