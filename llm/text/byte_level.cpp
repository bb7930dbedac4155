#include "llm/text/byte_level.h"

#include <array>

#include "llm/text/utf8.h"

namespace llm {

std::string characters_of_bytes(std::string_view bytes) {
  static const auto characters = [] {
    std::array<std::string, 256> all;
    for (size_t byte = 0; byte < 256; ++byte) all[byte] = byte_character(static_cast<int>(byte));
    return all;
  }();
  std::string text;
  for (const char c : bytes) text += characters[static_cast<unsigned char>(c)];
  return text;
}

namespace {

// The byte that the character `code` stands for, -1: none.
int byte_of(uint32_t code) {
  static const auto bytes = [] {
    std::array<int, 324> all;  // GPT-2's last character is U+0143
    all.fill(-1);
    for (int byte = 0; byte < 256; ++byte) {
      const std::string character = byte_character(byte);
      all[utf8_code(character, character.size())] = byte;
    }
    return all;
  }();
  return code < bytes.size() ? bytes[code] : -1;
}

// Appends the bytes of `token`; false where a character stands for none.
bool append_bytes(std::string_view token, std::string& bytes) {
  for (size_t length = 0; !token.empty(); token.remove_prefix(length)) {
    length = utf8_length(token);
    const int byte = length ? byte_of(utf8_code(token, length)) : -1;
    if (byte < 0) return false;
    bytes += static_cast<char>(byte);
  }
  return true;
}

}  // namespace

bool stands_for_bytes(const std::string& token) {
  std::string bytes;
  return append_bytes(token, bytes);
}

std::string bytes_of_characters(const std::string& token) {
  std::string bytes;
  return append_bytes(token, bytes) ? bytes : token;
}

}  // namespace llm
