#pragma once

#include <cstdint>
#include <memory>

#include "src/app/models.h"

namespace actnn::app {

/// The model "gpt" (`make_model`). Inputs: [N, up to TextData::kContext] characters; labels: the next ones.
std::unique_ptr<Model> make_gpt(int64_t characters);

}  // namespace actnn::app
