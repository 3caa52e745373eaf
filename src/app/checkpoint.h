#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

namespace actnn::app {

/// A run that can be resumed. The file is a safetensors file, so that other programs can read the weights:
///
///     8 bytes         N, the size of the header, little-endian
///     N bytes         JSON: {"<name>": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ..,
///                            "__metadata__": {"actnn": "<state as JSON text>", "crc32": "<of that and the data>"}}
///     the rest        the tensors, row-major, little-endian, in the order of their offsets
struct Checkpoint {
  nlohmann::json state;                       ///< settings, position, measurements
  std::map<std::string, at::Tensor> tensors;  ///< weights, optimizer state, random states; read: on the CPU
};

/// Writes the whole file or nothing; RunError where that fails, e.g. for a full disk.
void write_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint);

/// RunError where the file cannot be read, is no checkpoint, is truncated or damaged.
Checkpoint read_checkpoint(const std::filesystem::path& path);

}  // namespace actnn::app
