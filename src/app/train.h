#pragma once

#include "src/app/options.h"

namespace actnn::app {

/// Runs `actnn train`; returns the exit code. Results go to `<output>/<name>/result.json`; nothing is written there by
/// a run that does not reach its end.
int train(const TrainOptions& options);

}  // namespace actnn::app
