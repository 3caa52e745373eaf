#pragma once

#include <ATen/core/ivalue.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "actnn/core/rounding.h"

namespace actnn {

/// What the layers of a model do with their activations: the flags of the published system (Chen et al., "ActNN", ICML
/// 2021) and ours. A value: read when a layer is converted and at each of its forwards. The defaults are those of level
/// L3.
struct Config {
  // What is saved.
  bool compress_activation = true;  ///< false: exact activations
  bool training = true;             ///< false: as compress_activation = false, for evaluation with gradients
  std::vector<int64_t> activation_compression_bits = {2, 8, 8};  ///< average bits of a layer, by its `group`
  int64_t group_size = 256;  ///< elements that share a range; a positive multiple of 32
  bool pergroup = true;      ///< false: one range for a whole tensor (for a sample, where samples have own bits)
  Rounding rounding = Rounding::kDithered;  ///< nearest biases gradients
  bool simulate = false;                    ///< keep the copies unpacked, in floating point: no memory is saved
  bool enable_quantized_bn = true;          ///< false: batch norms are not converted

  // Who gets how many bits.
  bool adaptive_conv_scheme = true;  ///< bits per sample in convolutions and linear layers
  bool adaptive_bn_scheme = true;    ///< bits per sample in batch norms
  int64_t initial_bits = 8;          ///< where the greedy allocation begins, 1..8
  bool perlayer = true;              ///< bits per layer, anew after each backward
  int64_t adapt_interval = 1;        ///< steps of which one measures what bits are allocated by; in the others, layers
                                     ///< keep their bits, and samples share them evenly
  bool use_gradient = false;         ///< sensitivities from a gradient norm per training sample instead of per layer
  std::optional<double> noise_target =
      std::nullopt;  ///< instead of average bits, whatever the group: the fewest bytes whose
                     ///< predicted gradient noise (variance / squared norm) stays under it

  // Memory.
  std::optional<double> empty_cache_threshold =
      std::nullopt;  ///< release the allocator's cache when allocated / reserved
                     ///< falls under it
  std::optional<int64_t> pipeline_threshold = std::nullopt;  ///< bytes above which a convolution's backward is cut up
  std::optional<bool> cudnn_benchmark_conv2d =
      std::nullopt;   ///< whether cuDNN may try algorithms for 2-D convolutions; none: as torch's own switch says
  bool swap = false;  ///< keep the data in pinned host memory

  // Debugging: what the Python layers print or leave out.
  bool debug_memory_model = false;
  bool debug_speed = false;
  bool debug_memory_op_forward = false;
  bool debug_memory_op_backward = false;
  bool debug_remove_bn = false;
  bool debug_remove_relu = false;

  bool operator==(const Config&) const = default;
};

/// The levels: "L0" (nothing), "L1" (4-bit convolutions and linear layers, exact batch norms), "L2" (4 bits
/// everywhere), "L3" (2 bits on average, adaptive), "L3.1" (L3 and less workspace), "L4" (L3.1 and swap), "L5" (L4 and
/// an allocator that defragments, which is the caller's to set: `allocator_setting`), "swap" (exact activations,
/// swapped). An error (c10::ValueError) for another name.
Config config_for_level(std::string_view level);

/// What PYTORCH_CUDA_ALLOC_CONF has to contain for a level: "expandable_segments:True" for L5, else nothing.
std::string_view allocator_setting(std::string_view level);

/// The names of all levels, and of all flags, in the order above.
std::vector<std::string> level_names();
std::vector<std::string> config_flags();

/// A flag by name; `rounding` is a string, "dithered", "stochastic" or "nearest". The published system's `stochastic`
/// is a view of it, and not among `config_flags`: it reads as whether rounding is random; false is "nearest", and true
/// is "dithered" where rounding was not random. Errors (c10::ValueError, c10::TypeError) name the flag, what it must be
/// and what it was.
c10::IValue get_flag(const Config& config, const std::string& name);
void set_flag(Config& config, const std::string& name, const c10::IValue& value);

}  // namespace actnn
