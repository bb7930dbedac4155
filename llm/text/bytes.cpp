#include "llm/text/bytes.h"

#include <algorithm>
#include <array>

#include "llm/base/error.h"
#include "llm/base/json.h"

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
    const Json byte_level = {
        {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
    Json vocabulary = Json::object();  // in the order of the ids
    for (int byte = 0; byte < 256; ++byte) vocabulary[byte_character(byte)] = byte;
    vocabulary[std::string(kEndOfText)] = kEndOfTextId;
    const Json document = {
        {"version", "1.0"},
        {"truncation", nullptr},
        {"padding", nullptr},
        {"added_tokens", Json::array({{{"id", kEndOfTextId},
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
          {"merges", Json::array()}}},
    };
    return document.dump(2) + "\n";
  }
};

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

bool is_bytes_tokenizer(const Json& document) {
  const Json ours = parse_json(BytesTokenizer().json(), "");
  const Json& added = document["added_tokens"];
  if (!added.is_array() || added.size() != 1) return false;
  for (const char* key : {"id", "content", "special", "lstrip", "rstrip", "single_word"})
    if (added[0][key] != ours["added_tokens"][0][key]) return false;
  // What the model and its surroundings may add to or take from plain bytes must not be there.
  return document["model"]["type"] == "BPE" && document["model"]["vocab"] == ours["model"]["vocab"] &&
         document["model"]["merges"] == ours["model"]["merges"] && document["normalizer"].is_null() &&
         document["pre_tokenizer"]["type"] == "ByteLevel" && document["pre_tokenizer"]["add_prefix_space"] == false &&
         document["decoder"]["type"] == "ByteLevel" && document["post_processor"].is_null();
}

}  // namespace llm
