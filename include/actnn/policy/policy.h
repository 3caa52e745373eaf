#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/util/intrusive_ptr.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "actnn/policy/config.h"

namespace actnn {

class Scheme;

/// What the schemes of one model share: the configuration, the samples of the current batch, and the allocation of bits
/// to layers (Chen et al., "ActNN", ICML 2021, section 4.3).
///
/// Bits are allocated at the first forward after a backward, over the layers that took part in that backward, each with
/// all its uses; those that did not keep theirs. So gradient accumulation, several losses, layers used twice or not at
/// all, frozen layers and changing batch sizes need nothing special. On CUDA the result is read back without waiting
/// for it: bits computed at the beginning of one step act from the beginning of the next, which waits only if the
/// device is a step behind. While a CUDA graph is captured bits stay as they are, and with an `adapt_interval` above 1
/// nothing is measured.
///
/// Thread-safe with respect to autograd's threads.
class Policy : public torch::CustomClassHolder {
 public:
  explicit Policy(Config config = {});
  ~Policy() override;

  const Config& config() const noexcept { return config_; }
  Config& config() noexcept { return config_; }

  /// The indices in the training set of the samples of the current batch: int64 [N], any device; for `use_gradient`.
  /// Errors (c10::ValueError, c10::TypeError): another dtype or rank; indices on the CPU that are not in
  /// 0..num_samples-1.
  void set_batch(std::optional<at::Tensor> indices);
  const std::optional<at::Tensor>& batch() const noexcept { return batch_; }

  /// Size of the training set, for `use_gradient`. Tables that are there grow.
  void set_num_samples(int64_t samples);
  int64_t num_samples() const noexcept { return num_samples_; }

  /// Whether backward updates the gradient norms.
  void set_update_scale(bool update) noexcept { update_scale_ = update; }
  bool update_scale() const noexcept { return update_scale_; }

  /// The schemes that are alive, in the order of their construction.
  std::vector<c10::intrusive_ptr<Scheme>> schemes() const;

  /// The convolution or linear layer whose forward came last in this step, or null.
  c10::intrusive_ptr<Scheme> previous() const;

  /// Allocates bits to layers now, from the last backward, and waits for the result. Nothing happens without one.
  void allocate_per_layer();

  /// The noise that quantization adds to the weights' gradients of convolutions and linear layers, predicted from
  /// sensitivities, over the gradients' squared norm: of the last backward in a step that measured. NaN without one.
  /// Waits for the device.
  double predicted_noise() const;

  /// Multiplies predictions from now on, e.g. by measured / predicted noise (`actnn/policy/gradient_noise.h`).
  /// Positive.
  void set_noise_correction(double factor);
  double noise_correction() const noexcept { return noise_correction_; }

 private:
  friend class Scheme;

  struct Allocation;
  struct Layers;

  void enlist(const c10::intrusive_ptr<Scheme>& scheme);
  void begin_forward(const c10::intrusive_ptr<Scheme>& scheme, const at::Tensor& input);
  /// Whether this step is one of those that measure.
  bool measures(c10::Device device) const;
  void note_backward() noexcept { backward_came_ = true; }
  int64_t step() const noexcept { return step_; }
  void set_previous(const c10::intrusive_ptr<Scheme>& scheme);
  std::unique_ptr<Allocation> allocate() const;
  /// Of the layers that took part in the last backward; the host's only if all are there.
  std::optional<c10::Device> device_of_step() const;
  void finish(std::unique_ptr<Allocation> allocation);
  std::vector<c10::intrusive_ptr<Scheme>> living() const;

  Config config_;
  std::optional<at::Tensor> batch_;
  int64_t num_samples_ = 1;
  bool update_scale_ = true;
  double noise_correction_ = 1.0;
  std::atomic<bool> backward_came_ = false;
  std::atomic<int64_t> step_ = 0;  ///< counts forwards that began after a backward
  std::unique_ptr<Layers> layers_;
  mutable std::mutex mutex_;
};

}  // namespace actnn
