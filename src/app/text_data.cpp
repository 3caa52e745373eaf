#include "src/app/text_data.h"

#include <ATen/ops/empty.h>
#include <fmt/core.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string_view>
#include <system_error>

#include "src/app/error.h"
#include "src/app/gzip_file.h"

namespace actnn::app {
namespace {

/// Far above any text that this program trains on in a lifetime.
constexpr std::size_t kMaximumTextBytes = std::size_t{1} << 28U;

constexpr int64_t kTestShare = 10;  // one in so many characters is in the test
constexpr int64_t kSequence = TextData::kContext + 1;

std::string read_bytes(const std::filesystem::path& path) {
  GzipFile file(path);
  std::string bytes;
  std::array<uint8_t, 1U << 16U> piece{};
  while (const std::size_t count = file.read(piece.data(), piece.size())) {
    bytes.append(reinterpret_cast<const char*>(piece.data()), count);
    if (bytes.size() > kMaximumTextBytes) {
      throw RunError(fmt::format("{} is too large: a text of at most {} MiB was expected", path.string(),
                                 kMaximumTextBytes >> 20U));
    }
  }
  return bytes;
}

/// The bytes of a character with this first byte; none for a byte that begins none.
std::optional<std::size_t> length_of(uint8_t first) {
  if (first < 0x80U) {
    return 1;
  }
  if (first < 0xC2U || first > 0xF4U) {
    return std::nullopt;
  }
  return first < 0xE0U ? 2 : first < 0xF0U ? 3 : 4;
}

/// The character that UTF-8 bytes begin with, and how many bytes it has; none where they begin with no character
/// (RFC 3629).
std::optional<std::pair<char32_t, std::size_t>> first_character(std::string_view bytes) {
  const auto byte = [&](std::size_t number) { return static_cast<uint8_t>(bytes[number]); };
  const std::optional<std::size_t> length = length_of(byte(0));
  if (!length || *length > bytes.size()) {
    return std::nullopt;
  }
  constexpr std::array<uint8_t, 5> kFirstBits{0, 0x7F, 0x1F, 0x0F, 0x07};
  char32_t character = byte(0) & kFirstBits.at(*length);
  for (std::size_t number = 1; number < *length; ++number) {
    if ((byte(number) & 0xC0U) != 0x80U) {
      return std::nullopt;
    }
    character = character << 6U | (byte(number) & 0x3FU);
  }
  const bool is_surrogate = character >= 0xD800 && character < 0xE000;
  const bool is_too_long = (*length == 3 && character < 0x800) || (*length == 4 && character < 0x10000);
  if (is_surrogate || is_too_long || character > 0x10FFFF) {
    return std::nullopt;
  }
  return std::pair(character, *length);
}

std::u32string decode(std::string_view bytes, const std::filesystem::path& path) {
  std::u32string text;
  for (std::size_t position = 0; position < bytes.size();) {
    const auto character = first_character(bytes.substr(position));
    if (!character) {
      throw RunError(fmt::format("{} is not a text in UTF-8: the byte {:#04x} at position {} begins no character",
                                 path.string(), static_cast<uint8_t>(bytes[position]), position));
    }
    text.push_back(character->first);
    position += character->second;
  }
  return text;
}

bool is_text_name(std::string name) {
  if (name.ends_with(".gz")) {
    name.resize(name.size() - 3);
  }
  return name.ends_with(".txt");
}

Batch with_next(const at::Tensor& sequences) {
  const at::Tensor all = sequences.to(at::kLong);
  return {all.slice(1, 0, TextData::kContext).contiguous(), all.slice(1, 1).contiguous()};
}

}  // namespace

Text read_text(const std::filesystem::path& path) {
  const std::u32string text = decode(read_bytes(path), path);
  Text read{.path = path, .alphabet = text, .characters = {}};
  std::u32string& alphabet = read.alphabet;
  std::sort(alphabet.begin(), alphabet.end());
  alphabet.erase(std::unique(alphabet.begin(), alphabet.end()), alphabet.end());
  read.characters.reserve(text.size());
  for (const char32_t character : text) {
    const auto place = std::lower_bound(alphabet.begin(), alphabet.end(), character);
    read.characters.push_back(static_cast<int32_t>(place - alphabet.begin()));
  }
  return read;
}

std::filesystem::path find_text(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) {
    return path;
  }
  std::vector<std::filesystem::path> texts;
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
    if (is_text_name(entry.path().filename().string())) {
      texts.push_back(entry.path());
    }
  }
  if (texts.size() != 1) {
    throw RunError(fmt::format("the data folder {} must hold one text, a file .txt or .txt.gz; found {}", path.string(),
                               texts.empty() ? "none" : std::to_string(texts.size())));
  }
  return texts.front();
}

TextData::TextData(const Text& text, Part part, int64_t limit, c10::Device device)
    : classes_(static_cast<int64_t>(text.alphabet.size())) {
  const auto length = static_cast<int64_t>(text.characters.size());
  const int64_t test = length / kTestShare;
  if (test < kSequence) {
    throw RunError(
        fmt::format("{} is too short: it has {} characters, and at least {} are needed, a tenth of them for the test",
                    text.path.string(), length, kSequence * kTestShare));
  }
  const int64_t begin = part == Part::kTrain ? 0 : length - test;
  const int64_t available = ((part == Part::kTrain ? length - test : test) - 1) / kContext;
  if (limit > available) {
    throw UsageError(fmt::format("--{}-images {} is more than the {} sequences of {} characters in {}",
                                 part == Part::kTrain ? "train" : "test", limit, available, kContext,
                                 text.path.string()));
  }
  const int64_t used = (limit == 0 ? available : limit) * kContext + 1;
  const at::Tensor characters = at::empty({used}, at::kInt);
  std::memcpy(characters.mutable_data_ptr(), text.characters.data() + begin, characters.nbytes());
  const auto add = [this](const void* data, std::size_t size) {
    checksum_ = static_cast<uint32_t>(crc32_z(checksum_, static_cast<const Bytef*>(data), size));
  };
  add(text.alphabet.data(), text.alphabet.size() * sizeof(char32_t));
  add(characters.const_data_ptr(), characters.nbytes());
  characters_ = characters.to(device);
  sequences_ = characters_.unfold(0, kSequence, kContext);
}

Batch TextData::batch(const at::Tensor& indices) const {
  return with_next(sequences_.index_select(0, indices.to(characters_.device())));
}

Batch TextData::range(int64_t begin, int64_t end) const { return with_next(sequences_.slice(0, begin, end)); }

}  // namespace actnn::app
