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

}  // namespace

nlohmann::json compress(torch::nn::Sequential& model, int64_t bits) {
  const nn::ConversionReport report = nn::convert(model, {.quantization = {.bits = bits}, .skip = {}, .skip_if = {}});
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
          {"layers", layers}};
}

}  // namespace actnn::app
