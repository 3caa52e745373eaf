#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "src/app/record.h"
#include "src/app/settings.h"

namespace actnn::app {

/// "12.3 MiB"
std::string format_bytes(int64_t bytes);

/// The comparison of the phases that ran to their end, with their ratio where both did.
std::string format_table(const Settings& settings, const std::optional<PhaseRecord>& exact,
                         const std::optional<PhaseRecord>& compressed);

}  // namespace actnn::app
