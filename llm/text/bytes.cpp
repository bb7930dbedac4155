#include "llm/text/bytes.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "llm/base/error.h"

namespace llm {
namespace {

constexpr int32_t kEndOfTextId = 256;

constexpr std::array<char, 256> kAllBytes = [] {
  std::array<char, 256> bytes{};
  for (int i = 0; i < 256; ++i) bytes[static_cast<size_t>(i)] = static_cast<char>(i);
  return bytes;
}();

void append_bytes(std::string_view text, std::vector<int32_t>& ids) {
  const size_t first = ids.size();
  ids.resize(first + text.size());
  int32_t* out = ids.data() + first;
  for (size_t i = 0; i < text.size(); ++i) out[i] = static_cast<unsigned char>(text[i]);
}

class BytesTokenizer : public Tokenizer {
 public:
  int64_t vocabulary() const override { return 257; }
  int32_t end_of_text() const override { return kEndOfTextId; }

  void encode(std::string_view text, bool special, std::vector<int32_t>& ids) const override {
    for (size_t found; special && (found = text.find(kEndOfText)) != text.npos;) {
      append_bytes(text.substr(0, found), ids);
      ids.push_back(kEndOfTextId);
      text.remove_prefix(found + kEndOfText.size());
    }
    append_bytes(text, ids);
  }

  std::string_view bytes_of(int32_t id) const override {
    if (id < 0 || id > kEndOfTextId) fail("token ", id, " is outside the vocabulary of ", vocabulary());
    if (id == kEndOfTextId) return kEndOfText;
    return {&kAllBytes[static_cast<size_t>(id)], 1};
  }

  // Anywhere but inside the name of the special token.
  size_t safe_cut(std::string_view text, size_t from) const override {
    if (from >= text.size()) return text.size();
    const size_t reach = kEndOfText.size() - 1;
    const size_t begin = from > reach ? from - reach : 0;
    const size_t found = text.substr(begin, from + reach - begin).find(kEndOfText);
    return found == text.npos || begin + found >= from ? from : begin + found + kEndOfText.size();
  }

  std::string json() const override {
    using nlohmann::ordered_json;
    const ordered_json byte_level = {
        {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
    ordered_json vocabulary = ordered_json::object();  // in the order of the ids
    for (int byte = 0; byte < 256; ++byte) vocabulary[byte_character(byte)] = byte;
    vocabulary[std::string(kEndOfText)] = kEndOfTextId;
    const ordered_json document = {
        {"version", "1.0"},
        {"truncation", nullptr},
        {"padding", nullptr},
        {"added_tokens", ordered_json::array({{{"id", kEndOfTextId},
                                               {"content", kEndOfText},
                                               {"single_word", false},
                                               {"lstrip", false},
                                               {"rstrip", false},
                                               {"normalized", false},
                                               {"special", true}}})},
        {"normalizer", nullptr},
        {"pre_tokenizer", byte_level},
        {"post_processor", nullptr},
        {"decoder", byte_level},
        {"model",
         {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", false},
          {"vocab", vocabulary},
          {"merges", ordered_json::array()}}},
    };
    return document.dump(2) + "\n";
  }
};

// A member on the way down `keys`, null when one is missing.
const nlohmann::json& member(const nlohmann::json& document, std::initializer_list<const char*> keys) {
  static const nlohmann::json null;
  const nlohmann::json* value = &document;
  for (const char* key : keys) {
    if (!value->is_object() || !value->contains(key)) return null;
    value = &value->at(key);
  }
  return *value;
}

}  // namespace

std::string byte_character(int byte) {
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
  };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += !printable(b);
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

std::unique_ptr<Tokenizer> make_bytes_tokenizer() { return std::make_unique<BytesTokenizer>(); }

bool is_bytes_tokenizer(const nlohmann::json& document) {
  const nlohmann::json ours = nlohmann::json::parse(BytesTokenizer().json());
  const nlohmann::json& added = member(document, {"added_tokens"});
  if (!added.is_array() || added.size() != 1) return false;
  for (const char* key : {"id", "content", "special", "lstrip", "rstrip", "single_word"})
    if (member(added[0], {key}) != ours["added_tokens"][0][key]) return false;
  // What the model and its surroundings may add to or take from plain bytes must not be there.
  return member(document, {"model", "type"}) == "BPE" &&
         member(document, {"model", "vocab"}) == ours["model"]["vocab"] &&
         member(document, {"model", "merges"}) == ours["model"]["merges"] &&
         member(document, {"normalizer"}).is_null() && member(document, {"pre_tokenizer", "type"}) == "ByteLevel" &&
         member(document, {"pre_tokenizer", "add_prefix_space"}) == false &&
         member(document, {"decoder", "type"}) == "ByteLevel" && member(document, {"post_processor"}).is_null();
}

}  // namespace llm
