// SentencePiece's own normalization, as its models carry it: a double array (Aoe 1989, in the layout of Yata's darts-clone) from
// strings to places in a list of replacements, each ended by a zero byte.
#include <utf8proc.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "llm/text/rank_files.h"
#include "llm/text/tokenizer_json_reader.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

struct Rules {
  std::vector<uint32_t> units;
  std::string replacements;

  // What becomes of `text` by the shortest string that it begins with, which is the library's choice too; null: nothing.
  const char* find(std::string_view text) const {
    size_t at = 0;
    if (!step(at, 0)) return nullptr;
    for (const char c : text) {
      const auto byte = static_cast<unsigned char>(c);
      if (byte == 0) return nullptr;
      at ^= byte;
      if (at >= units.size() || (units[at] & 0x800000FFu) != byte) return nullptr;
      const bool leaf = units[at] >> 8 & 1;
      if (!step(at, at)) return nullptr;
      if (leaf) {
        const uint32_t place = units[at] & 0x7FFFFFFFu;
        return place < replacements.size() ? replacements.c_str() + place : nullptr;
      }
    }
    return nullptr;
  }

 private:
  // From the unit `unit` to its children; false where the array is damaged.
  bool step(size_t& at, size_t unit) const {
    const uint32_t u = units[unit];
    at ^= static_cast<size_t>(u >> 10) << ((u & 1u << 9) >> 6);
    return at < units.size();
  }
};

// The length of the first grapheme cluster of `text`, well-formed UTF-8.
size_t grapheme_length(std::string_view text) {
  utf8proc_int32_t state = 0;
  size_t at = utf8_length(text);
  auto before = static_cast<utf8proc_int32_t>(utf8_code(text, at));
  while (at < text.size()) {
    const size_t length = utf8_length(text.substr(at));
    const auto code = static_cast<utf8proc_int32_t>(utf8_code(text.substr(at), length));
    if (utf8proc_grapheme_break_stateful(before, code, &state)) break;
    before = code;
    at += length;
  }
  return at;
}

}  // namespace

Normalizer precompiled_normalizer(const JsonReader& r, const std::string& base64) {
  const auto rules = std::make_shared<Rules>();
  std::string bytes;
  uint32_t size = 0;  // of the array, in bytes
  if (decode_base64(base64, bytes) && bytes.size() >= 4) std::memcpy(&size, bytes.data(), 4);
  if (size < 4 || size % 4 != 0 || size > bytes.size() - 4)
    r.wrong("the \"precompiled_charsmap\" of the normalizer is damaged");
  rules->units.resize(size / 4);
  std::memcpy(rules->units.data(), bytes.data() + 4, size);
  rules->replacements = bytes.substr(4 + size);
  const auto apply = [rules](std::string& text, bool) {
    text = with_changes(text, [&](std::string_view good, std::string& out) {
      for (size_t at = 0; at < good.size();) {
        const std::string_view grapheme = good.substr(at, grapheme_length(good.substr(at)));
        at += grapheme.size();
        if (const char* whole = grapheme.size() < 6 ? rules->find(grapheme) : nullptr) {
          out += whole;
          continue;
        }
        for (size_t i = 0, length = 0; i < grapheme.size(); i += length) {
          length = utf8_length(grapheme.substr(i));
          const char* one = rules->find(grapheme.substr(i, length));
          one ? out += one : out += grapheme.substr(i, length);
        }
      }
    });
  };
  return {apply};
}

}  // namespace llm
