#include "src/app/result.h"

#include <ATen/Parallel.h>
#include <fmt/chrono.h>
#include <fmt/core.h>

#include <ctime>
#include <nlohmann/json.hpp>
#include <system_error>

#include "actnn/cpu/target.h"
#include "src/app/atomic_file.h"
#include "src/app/build_info.h"

namespace actnn::app {
namespace {

constexpr int kFormat = 1;
constexpr const char* kLatest = "latest";

std::string default_name(const Settings& settings) {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return fmt::format("{:%Y%m%d-%H%M%S}-{}-{}bit", local, settings.model, settings.bits);
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", utc);
}

}  // namespace

ResultFolder::ResultFolder(const TrainOptions& options)
    : output_(options.output), name_(options.name.empty() ? default_name(options.settings) : options.name) {
  make_directories(output_ / name_);
  require_writable(file());
}

ResultFolder::~ResultFolder() {
  std::error_code error;
  std::filesystem::remove(output_ / name_, error);  // fails where there is a result
}

void ResultFolder::write(const Settings& settings, const std::map<Phase, PhaseRecord>& records) const {
  nlohmann::json result = {{"format", kFormat},
                           {"name", name_},
                           {"finished", utc_now()},
                           {"settings", settings},
                           {"versions",
                            {{"actnn", actnn_version()},
                             {"torch", torch_version_running()},
                             {"torch_built_for", torch_version_built_for()}}},
                           {"cpu_target", cpu::current_target()},
                           {"threads", at::get_num_threads()}};
  for (const auto& [phase, record] : records) {
    result[name_of(phase)] = result_of(record, settings);
  }
  AtomicFile json(file());
  json.write(result.dump(1) + "\n");
  json.commit();
  replace_symlink(name_, output_ / kLatest);
}

}  // namespace actnn::app
