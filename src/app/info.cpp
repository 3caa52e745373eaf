#include "src/app/info.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <fmt/core.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "actnn/cpu/target.h"
#include "src/app/build_info.h"
#include "src/app/device.h"

namespace actnn::app {
namespace {

std::vector<std::string> operators() {
  std::vector<std::string> names;
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    constexpr std::string_view kNamespace = "actnn::";
    if (name.name.starts_with(kNamespace)) {
      names.push_back(name.name.substr(kNamespace.size()) +
                      (name.overload_name.empty() ? "" : "." + name.overload_name));
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// The words with commas, broken into lines that are indented like the column of values.
std::string wrapped(const std::vector<std::string>& words) {
  constexpr std::size_t kIndent = 18;
  constexpr std::size_t kWidth = 100;
  std::string text;
  std::size_t column = kIndent;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string word = words[i] + (i + 1 < words.size() ? "," : "");
    if (i > 0 && column + 1 + word.size() > kWidth) {
      text += "\n" + std::string(kIndent, ' ');
      column = kIndent;
    } else if (i > 0) {
      text += " ";
      ++column;
    }
    text += word;
    column += word.size();
  }
  return text.empty() ? "none" : text;
}

}  // namespace

std::string info() {
  const std::vector<std::string> names = operators();
  std::string text;
  const auto add = [&](const char* title, const std::string& value) {
    text += fmt::format("{:<18}{}\n", title, value);
  };
  add("actnn", actnn_version());
  add("compiler", compiler());
  add("torch", fmt::format("{} running, {} built for", torch_version_running(), torch_version_built_for()));
  add("CPU target", fmt::format("{} (ACTNN_CPU_TARGET chooses)", cpu::current_target()));
  add("CPU targets", wrapped(cpu::available_targets()));
  add("CPU threads", fmt::format("{}", at::get_num_threads()));
  add("CUDA kernels", cuda_kernels());
  add("devices", wrapped(available_devices()));
  add("operators", fmt::format("{} in torch.ops.actnn", names.size()));
  add("", wrapped(names));
  return text;
}

}  // namespace actnn::app
