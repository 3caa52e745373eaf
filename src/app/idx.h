#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace actnn::app {

/// An array of bytes as MNIST's files hold it: the big-endian magic number 0x000008RR (bytes, RR dimensions), one
/// big-endian 32-bit size per dimension, then the elements, last dimension fastest.
struct IdxArray {
  std::vector<int64_t> shape;
  std::vector<uint8_t> data;
};

/// Reads an idx file of bytes with `dimensions` dimensions, plain or compressed with gzip. A file that is missing,
/// damaged, truncated or of another kind is a RunError that says what was expected and found.
IdxArray read_idx(const std::filesystem::path& path, int dimensions);

/// The path in `folder` of the idx file `name`, or of `name`.gz if only that exists; a RunError if neither does.
std::filesystem::path find_idx(const std::filesystem::path& folder, const std::string& name);

}  // namespace actnn::app
