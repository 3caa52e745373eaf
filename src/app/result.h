#pragma once

#include <filesystem>
#include <map>

#include "src/app/options.h"
#include "src/app/record.h"

namespace actnn::app {

/// Where the results of a run go.
class ResultFolder {
 public:
  /// Makes the folder. RunError where the results could not be written.
  explicit ResultFolder(const TrainOptions& options);
  ~ResultFolder();  ///< removes the folder where nothing came of the run
  ResultFolder(const ResultFolder&) = delete;
  ResultFolder& operator=(const ResultFolder&) = delete;

  /// Writes result.json, and makes `latest` beside the folder point to it.
  void write(const Settings& settings, const std::map<Phase, PhaseRecord>& records) const;

  std::filesystem::path file() const { return output_ / name_ / "result.json"; }

 private:
  std::filesystem::path output_;
  std::string name_;
};

}  // namespace actnn::app
