#include "src/app/checkpoint.h"

#include <ATen/ops/empty.h>
#include <fmt/core.h>
#include <zlib.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "src/app/atomic_file.h"
#include "src/app/error.h"

namespace actnn::app {
namespace {

static_assert(std::endian::native == std::endian::little, "a checkpoint's bytes are little-endian");

constexpr const char* kMetadata = "__metadata__";
constexpr const char* kState = "actnn";
constexpr const char* kChecksum = "crc32";
constexpr std::size_t kAlignment = 8;

constexpr std::array<std::pair<std::string_view, at::ScalarType>, 9> kTypes{{{"F32", at::kFloat},
                                                                             {"F64", at::kDouble},
                                                                             {"F16", at::kHalf},
                                                                             {"BF16", at::kBFloat16},
                                                                             {"I64", at::kLong},
                                                                             {"I32", at::kInt},
                                                                             {"I8", at::kChar},
                                                                             {"U8", at::kByte},
                                                                             {"BOOL", at::kBool}}};

std::string_view type_name(at::ScalarType type) {
  for (const auto& [name, known] : kTypes) {
    if (known == type) {
      return name;
    }
  }
  throw std::logic_error(fmt::format("a checkpoint cannot hold tensors of type {}", c10::toString(type)));
}

std::optional<at::ScalarType> type_named(std::string_view wanted) {
  for (const auto& [name, type] : kTypes) {
    if (name == wanted) {
      return type;
    }
  }
  return std::nullopt;
}

uint32_t add_to_checksum(uint32_t checksum, std::string_view bytes) {
  if (bytes.empty()) {
    return checksum;  // an empty tensor may have no address, which would make zlib start again
  }
  return static_cast<uint32_t>(crc32_z(checksum, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

std::string_view bytes_of(const at::Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()};
}

std::string read_whole(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    throw RunError(fmt::format("the checkpoint {} does not exist", path.string()));
  }
  if (!std::filesystem::is_regular_file(path, error)) {
    throw RunError(fmt::format("the checkpoint {} is not a regular file", path.string()));
  }
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string bytes(static_cast<std::size_t>(std::filesystem::file_size(path, error)), '\0');
  if (!file || !file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
    throw RunError(fmt::format("cannot read the checkpoint {}: {}", path.string(),
                               std::error_code(errno, std::generic_category()).message()));
  }
  return bytes;
}

/// The bytes of a tensor; nothing where they are more than `limit`, or the shape makes no sense.
std::optional<std::size_t> size_of(const std::vector<int64_t>& shape, at::ScalarType type, std::size_t limit) {
  std::size_t bytes = c10::elementSize(type);
  for (const int64_t size : shape) {
    if (size < 0 || (size > 0 && bytes > limit / static_cast<std::size_t>(size))) {
      return std::nullopt;
    }
    bytes *= static_cast<std::size_t>(size);
  }
  return bytes;
}

/// One tensor out of `data`, described by its entry in the header. Throws std::out_of_range where the two do not agree.
at::Tensor read_tensor(const nlohmann::json& entry, std::string_view data) {
  const std::optional<at::ScalarType> type = type_named(entry.at("dtype").get<std::string>());
  const auto shape = entry.at("shape").get<std::vector<int64_t>>();
  const auto [begin, end] = entry.at("data_offsets").get<std::pair<std::size_t, std::size_t>>();
  if (!type || begin > end || end > data.size() || size_of(shape, *type, data.size()) != end - begin) {
    throw std::out_of_range("an entry of the header");
  }
  at::Tensor tensor = at::empty(shape, *type);
  if (end > begin) {
    std::memcpy(tensor.mutable_data_ptr(), data.data() + begin, end - begin);
  }
  return tensor;
}

/// Where the last tensor ends.
std::size_t data_size(const nlohmann::json& header) {
  std::size_t size = 0;
  for (const auto& [name, entry] : header.items()) {
    if (name != kMetadata) {
      size = std::max(size, entry.at("data_offsets").at(1).get<std::size_t>());
    }
  }
  return size;
}

}  // namespace

void write_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint) {
  nlohmann::json header;
  std::vector<at::Tensor> tensors;
  std::size_t offset = 0;
  const std::string state = checkpoint.state.dump();
  uint32_t checksum = add_to_checksum(0, state);
  for (const auto& [name, tensor] : checkpoint.tensors) {
    tensors.push_back(tensor.detach().cpu().contiguous());
    const std::string_view bytes = bytes_of(tensors.back());
    checksum = add_to_checksum(checksum, bytes);
    header[name] = {{"dtype", type_name(tensor.scalar_type())},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {offset, offset + bytes.size()}}};
    offset += bytes.size();
  }
  header[kMetadata] = {{kState, state}, {kChecksum, fmt::format("{:08x}", checksum)}};
  std::string text = header.dump();
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  const uint64_t size = text.size();

  AtomicFile file(path);
  file.write(&size, sizeof size);
  file.write(text);
  for (const at::Tensor& tensor : tensors) {
    file.write(bytes_of(tensor));
  }
  file.commit();
}

Checkpoint read_checkpoint(const std::filesystem::path& path) {
  const std::string bytes = read_whole(path);
  const auto fail = [&](const std::string& why) { throw RunError(fmt::format("{} {}", path.string(), why)); };

  uint64_t header_size = 0;
  if (bytes.size() <= sizeof header_size || bytes[sizeof header_size] != '{') {
    fail("is not a checkpoint of actnn train");
  }
  std::memcpy(&header_size, bytes.data(), sizeof header_size);
  const std::string_view rest = std::string_view(bytes).substr(sizeof header_size);
  if (header_size > rest.size()) {
    fail(fmt::format("is truncated: expected {} bytes of header, found {}", header_size, rest.size()));
  }
  const nlohmann::json header = nlohmann::json::parse(rest.substr(0, header_size), nullptr, false);
  const std::string_view data = rest.substr(header_size);

  Checkpoint checkpoint;
  try {
    if (!header.is_object() || !header.contains(kMetadata) || !header.at(kMetadata).contains(kState)) {
      fail("is not a checkpoint of actnn train");
    }
    const std::size_t expected = data_size(header);
    if (data.size() < expected) {
      fail(fmt::format("is truncated: expected {} bytes of tensors, found {}", expected, data.size()));
    }
    const std::string state = header.at(kMetadata).at(kState);
    const std::string checksum = fmt::format("{:08x}", add_to_checksum(add_to_checksum(0, state), data));
    if (checksum != header.at(kMetadata).at(kChecksum)) {
      fail("is damaged: its checksum does not match its contents");
    }
    checkpoint.state = nlohmann::json::parse(state);
    for (const auto& [name, entry] : header.items()) {
      if (name != kMetadata) {
        checkpoint.tensors.emplace(name, read_tensor(entry, data));
      }
    }
  } catch (const nlohmann::json::exception&) {
    fail("is damaged: its header does not describe its contents");
  } catch (const std::out_of_range&) {
    fail("is damaged: its header does not describe its contents");
  }
  return checkpoint;
}

}  // namespace actnn::app
