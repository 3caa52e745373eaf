#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <optional>
#include <string>
#include <utility>

#include "actnn/autograd/retention.h"
#include "actnn/ops/quantization.h"
#include "src/ops/rounding_names.h"

/// \file
/// The trailing arguments of every op that saves its input: in its schema, in its kernels' signature, and in a call.

namespace actnn {

inline const std::string kSaveSchema =
    "int bits=4, int group_size=256, str rounding='dithered', Tensor(z!)? rng_state=None, Tensor? sample_bits=None, "
    "SymInt total_bits=0, bool compress=True, bool simulate=False, bool offload=False";

/// A kernel's signature: the op's own arguments, then those of the schema above.
template <class... Own>
using SaveSignature = at::Tensor(Own..., int64_t bits, int64_t group_size, c10::string_view rounding,
                                 const std::optional<at::Tensor>& rng_state,
                                 const std::optional<at::Tensor>& sample_bits, c10::SymInt total_bits, bool compress,
                                 bool simulate, bool offload);

/// The same as a struct.
struct SaveOptions {
  /// Throws c10::ValueError, for `op`, for a rounding that there is not.
  SaveOptions(const char* op, int64_t bits, int64_t group_size, c10::string_view rounding,
              std::optional<at::Tensor> state, std::optional<at::Tensor> sample_bits, c10::SymInt total_bits,
              bool compress, bool simulate, bool offload)
      : SaveOptions({bits, group_size, rounding_of(op, rounding)},
                    {std::move(sample_bits), std::move(total_bits), compress, simulate, offload}, std::move(state)) {}
  SaveOptions(const Quantization& how, Retention where, std::optional<at::Tensor> state)
      : quantization(how), retention(std::move(where)), rng_state(std::move(state)) {}

  Quantization quantization;
  Retention retention;
  std::optional<at::Tensor> rng_state;
};

/// Calls an op with its own arguments, then those that say how its input is saved.
template <class Op, class... Own>
at::Tensor call_saving(const Op& op, const Quantization& quantization, const Retention& retention,
                       const std::optional<at::Tensor>& rng_state, const Own&... own) {
  return op.call(own..., quantization.bits, quantization.group_size, name_of(quantization.rounding), rng_state,
                 retention.sample_bits, retention.total_bits, retention.compress, retention.simulate,
                 retention.offload);
}

}  // namespace actnn
