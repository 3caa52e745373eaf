#include "src/app/compress.h"

#include "actnn/nn/convert.h"

namespace actnn::app {
namespace {

const char* name_of(nn::ConversionOutcome outcome) {
  switch (outcome) {
    case nn::ConversionOutcome::kConverted:
      return "converted";
    case nn::ConversionOutcome::kTraversed:
      return "traversed";
    case nn::ConversionOutcome::kLeftAlone:
      return "left alone";
  }
  return "";
}

/// The number of bits that blocks can have at least: one of them is the side of an activation's kink.
constexpr int64_t kFewestBlockBits = 2;

/// On a CPU a convolution costs more than what it would save.
nlohmann::json fuse(Model& model, int64_t bits, bool recompute) {
  nlohmann::json blocks = nlohmann::json::array();
  blocks::PlanOptions options = blocks::PlanOptions::of_bits(bits);
  options.recompute = recompute;
  for (const auto& item : model.layers->named_modules()) {
    if (auto* module = dynamic_cast<Fusible*>(item.value().get())) {
      module->fuse(options);
      blocks.push_back({{"path", item.key()}, {"plan", nlohmann::json::parse(module->plan())}});
    }
  }
  return blocks;
}

}  // namespace

nlohmann::json compress(Model& model, const Settings& settings) {
  model.compressed = true;
  const bool has_blocks = settings.compress == "blocks" && settings.bits >= kFewestBlockBits;
  const nlohmann::json blocks =
      has_blocks ? fuse(model, settings.bits, settings.device != "cpu") : nlohmann::json::array();
  const nn::ConversionReport report =
      nn::convert(model.layers, {.quantization = {.bits = settings.bits},
                                 .skip = {},
                                 .skip_if = [&](const std::string& path, const torch::nn::Module& module) {
                                   return (!path.empty() && path == model.own_layer()) ||
                                          (has_blocks && dynamic_cast<const Fusible*>(&module) != nullptr);
                                 }});
  nlohmann::json layers = nlohmann::json::array();
  for (const nn::ConversionEntry& entry : report.entries) {
    layers.push_back({{"path", entry.path},
                      {"type", entry.type},
                      {"outcome", name_of(entry.outcome)},
                      {"replacement", entry.replacement},
                      {"reason", entry.reason}});
  }
  return {{"converted", report.count(nn::ConversionOutcome::kConverted)},
          {"left_alone", report.count(nn::ConversionOutcome::kLeftAlone)},
          {"blocks", blocks},
          {"layers", layers}};
}

}  // namespace actnn::app
