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

std::string bytes_of_characters(const std::string& token) {
  static const auto bytes = [] {
    std::array<int, 324> all;  // GPT-2's last character is U+0143
    all.fill(-1);
    for (int byte = 0; byte < 256; ++byte) {
      const std::string character = byte_character(byte);
      all[utf8_code(character, character.size())] = byte;
    }
    return all;
  }();
  std::string text;
  for (std::string_view rest = token; !rest.empty();) {
    const size_t length = utf8_length(rest);
    const uint32_t code = length ? utf8_code(rest, length) : 1000;
    if (code >= bytes.size() || bytes[code] < 0) return token;
    text += static_cast<char>(bytes[code]);
    rest.remove_prefix(length);
  }
  return text;
}

}  // namespace llm
