#pragma once

#include <c10/util/intrusive_ptr.h>

#include <cstdint>
#include <optional>
#include <string>

#include "actnn/ops/quantization.h"
#include "actnn/policy/policy.h"
#include "actnn/policy/scheme.h"

namespace actnn::nn {

/// What every layer that saves a quantized activation is, besides a `torch::nn::Module`. It lets a program walk a tree
/// of modules and set bits without knowing the layers:
///
///     for (const auto& module : model->modules()) {
///       if (auto* layer = module->as<actnn::nn::QuantizedModule>()) layer->quantization().bits = 2;
///     }
///
/// A change acts at the next forward. Or a policy chooses (`set_policy`; `convert` does it for a tree): then
/// convolutions, linear layers and batch norms ask it at every forward, and the layer's own quantization rests; other
/// layers take the configured bits of their group once.
///
/// A copy of a layer gets a scheme of its own, with the same policy and state.
class QuantizedModule {
 public:
  QuantizedModule() = default;
  QuantizedModule(const QuantizedModule& other);
  QuantizedModule& operator=(const QuantizedModule& other);
  virtual ~QuantizedModule() = default;

  virtual Quantization& quantization() noexcept = 0;

  /// Hands the choice to `policy`; null: back to the layer. `group`: index into `Config::activation_compression_bits`;
  /// `name`: for those who look at the policy's schemes. Errors (c10::ValueError): a group that the configuration does
  /// not have.
  void set_policy(const c10::intrusive_ptr<Policy>& policy, int64_t group = 0, const std::string& name = "");

  /// Whether a policy is asked at every forward: in convolutions, linear layers and batch norms.
  bool follows_policy() const { return scheme_options().has_value(); }

  /// The layer's part in its policy, or null.
  const c10::intrusive_ptr<Scheme>& scheme() const noexcept { return scheme_; }

 private:
  /// What a scheme has to know about the layer; none: bits are fixed.
  virtual std::optional<SchemeOptions> scheme_options() const { return std::nullopt; }

  c10::intrusive_ptr<Scheme> scheme_;
};

}  // namespace actnn::nn
