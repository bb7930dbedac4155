#include "llm/text/tokenizer_json.h"

#include <algorithm>
#include <set>

#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/text/byte_level.h"
#include "llm/text/tokenizer_json_reader.h"

namespace llm {
namespace {

// A vocabulary {token: id}. Of two tokens with one id the first one stands for it when it is decoded.
Vocabulary read_vocabulary(const JsonReader& r, const Json& model) {
  const Json& vocab = model["vocab"];
  if (!vocab.is_object()) r.wrong("not a tokenizer.json, its \"model\" has no \"vocab\"");
  Vocabulary vocabulary;
  vocabulary.where = r.path;
  for (auto& [name, value] : vocab.items()) {
    const auto id = static_cast<size_t>(r.id(value, name));
    if (id >= vocabulary.tokens.size()) vocabulary.tokens.resize(id + 1);
    if (vocabulary.tokens[id].empty()) {
      vocabulary.tokens[id] = name;
    } else {
      vocabulary.more.emplace_back(name, id);
    }
  }
  return vocabulary;
}

std::vector<Merge> read_merges(const JsonReader& r, const Json& model, const TokenMap& map, const std::string& prefix) {
  std::vector<Merge> merges;
  for (const Json& item : r.list(model, "merges")) {
    const std::string where = concat("merge number ", merges.size());
    std::string left, right;
    if (item.is_string()) {
      const std::string& both = item.string();
      if (both.starts_with("#version")) continue;  // of a merges.txt
      const size_t blank = both.find(' ', 1);
      if (blank == both.npos) r.wrong(where, " is not two tokens: ", JsonReader::shown(both));
      left = both.substr(0, blank), right = both.substr(blank + 1);
    } else if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
      left = item[0].get<std::string>(), right = item[1].get<std::string>();
    } else {
      r.wrong(where, " is not two tokens");
    }
    const std::string joined = left + (right.starts_with(prefix) ? right.substr(prefix.size()) : right);
    const int32_t a = map.find(left), b = map.find(right), c = map.find(joined);
    if (a < 0 || b < 0 || c < 0)
      r.wrong(where, ": ", JsonReader::shown(a < 0 ? left : b < 0 ? right : joined), " is no token of the vocabulary");
    merges.push_back({a, b, c, static_cast<int32_t>(merges.size())});
  }
  return merges;
}

// The tokens <0x00> .. <0xFF>, by whose names bytes are written that are no token otherwise.
std::array<int32_t, 256> byte_tokens(const TokenMap& map, bool are_used) {
  std::array<int32_t, 256> ids{};
  for (size_t byte = 0; byte < 256; ++byte) {
    constexpr char digits[] = "0123456789ABCDEF";
    ids[byte] = are_used ? map.find(std::string{'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'}) : -1;
  }
  return ids;
}

BpeRules read_bpe(const JsonReader& r, const Json& model, const TokenMap& map) {
  if (const Json& dropout = model["dropout"]; !dropout.is_null() && dropout != 0.0)
    r.wrong("\"dropout\" is not supported");
  BpeRules bpe;
  bpe.continuing_prefix = r.text(model, "continuing_subword_prefix");
  bpe.word_suffix = r.text(model, "end_of_word_suffix");
  bpe.merges = read_merges(r, model, map, bpe.continuing_prefix);
  bpe.byte_level = false;
  bpe.byte_ids = byte_tokens(map, r.flag(model, "byte_fallback", false));
  if (const std::string unknown = r.text(model, "unk_token"); !unknown.empty()) {
    bpe.unknown = map.find(unknown);
    if (bpe.unknown < 0) bpe.missing_unknown = JsonReader::shown(unknown);
  }
  bpe.fuse_unknown = r.flag(model, "fuse_unk", false);
  bpe.whole_pieces = r.flag(model, "ignore_merges", false);
  return bpe;
}

// Whether all names stand for bytes, so that the model may work on bytes instead of the characters that are written for
// them. Names of added tokens do not matter: no piece of text is one.
bool may_be_byte_level(const BpeRules& bpe, const Vocabulary& vocabulary, const Json& added) {
  std::set<std::string> names;
  if (added.is_array())
    for (const Json& item : added)
      if (const Json& name = item["content"]; name.is_string()) names.insert(name.get<std::string>());
  const auto stands = [&](const std::string& name) { return stands_for_bytes(name) || names.contains(name); };
  return bpe.continuing_prefix.empty() && bpe.word_suffix.empty() &&
         std::all_of(bpe.byte_ids.begin(), bpe.byte_ids.end(), [](int32_t id) { return id < 0; }) &&
         std::all_of(vocabulary.tokens.begin(), vocabulary.tokens.end(), stands) &&
         std::all_of(vocabulary.more.begin(), vocabulary.more.end(),
                     [&](const auto& more) { return stands(more.first); });
}

// A vocabulary [[token, score], ...].
Vocabulary read_scored_vocabulary(const JsonReader& r, const Json& model, std::vector<double>& scores) {
  Vocabulary vocabulary;
  vocabulary.where = r.path;
  for (const Json& item : r.list(model, "vocab")) {
    if (!item.is_array() || item.size() != 2 || !item[0].is_string() || !item[1].is_number())
      r.wrong("token number ", scores.size(), " of the vocabulary is not a token and its score");
    vocabulary.tokens.push_back(item[0].get<std::string>());
    scores.push_back(item[1].get<double>());
  }
  return vocabulary;
}

UnigramRules read_unigram(const JsonReader& r, const Json& model, const TokenMap& map, std::vector<double> scores) {
  UnigramRules unigram{.scores = std::move(scores)};
  if (const Json& unknown = model["unk_id"]; !unknown.is_null()) {
    unigram.unknown = r.id(unknown, "unk_id");
    if (static_cast<size_t>(unigram.unknown) >= unigram.scores.size()) r.wrong("the unk_id is no token");
  }
  unigram.byte_ids = byte_tokens(map, r.flag(model, "byte_fallback", false));
  return unigram;
}

// A token that is in the model's vocabulary has its id there, another the next free one: what the file says of ids does not
// count for the library either.
std::vector<AddedToken> read_added(const JsonReader& r, const Json& list, const Vocabulary& vocabulary,
                                   const TokenMap& map) {
  std::vector<AddedToken> added;
  if (!list.is_null() && !list.is_array()) r.wrong("\"added_tokens\" is not a list");
  auto next = static_cast<int32_t>(vocabulary.more.size());
  for (const std::string& token : vocabulary.tokens) next += !token.empty();
  for (const Json& item : list) {
    AddedToken t{.name = r.text(item, "content"), .special = r.flag(item, "special", false)};
    if (t.name.empty()) continue;
    t.strip_left = r.flag(item, "lstrip", false), t.strip_right = r.flag(item, "rstrip", false);
    t.normalized = r.flag(item, "normalized", false), t.single_word = r.flag(item, "single_word", false);
    const auto same = std::find_if(added.begin(), added.end(), [&](const AddedToken& a) { return a.name == t.name; });
    t.id = map.find(t.name);
    if (same != added.end()) {
      t.id = same->id;
      *same = t;
      continue;
    }
    if (t.id < 0) t.id = next++;
    added.push_back(std::move(t));
  }
  return added;
}

}  // namespace

TokenizerParts parse_tokenizer_json(const Json& document, const std::string& path) {
  const JsonReader r{path};
  const Json& model = document["model"];
  if (!model.is_object()) r.wrong("not a tokenizer.json, it has no proper \"model\"");
  TokenizerParts parts;
  parts.vocabulary.where = path;
  read_normalizer(r, document["normalizer"], parts);

  bool byte_level = false;
  const std::string kind = r.type(model);
  std::vector<double> scores;
  parts.vocabulary = kind == "Unigram" ? read_scored_vocabulary(r, model, scores) : read_vocabulary(r, model);
  const TokenMap map(views(parts.vocabulary.tokens), parts.vocabulary.more);
  if (kind == "Unigram") {
    parts.model = read_unigram(r, model, map, std::move(scores));
  } else if (kind == "BPE" || (kind == "?" && model.contains("merges"))) {  // older files do not name the type
    BpeRules bpe = read_bpe(r, model, map);
    byte_level = may_be_byte_level(bpe, parts.vocabulary, document["added_tokens"]);
    parts.model = std::move(bpe);
  } else if (kind == "WordPiece") {
    WordPieceRules rules;
    if (model.contains("continuing_subword_prefix")) rules.prefix = r.text(model, "continuing_subword_prefix");
    rules.unknown = map.find(r.text(model, "unk_token"));
    rules.longest = r.count(model, "max_input_chars_per_word", rules.longest);
    parts.model = std::move(rules);
  } else if (kind == "WordLevel") {
    parts.model = WordLevelRules{map.find(r.text(model, "unk_token"))};
  } else {
    r.wrong("a tokenizer of type ", JsonReader::shown(kind),
            " is not supported; supported: BPE, WordPiece, WordLevel, Unigram");
  }
  if (parts.vocabulary.tokens.empty()) r.wrong("the vocabulary is empty");
  byte_level = read_pre_tokenizer(r, document["pre_tokenizer"], byte_level, parts);
  read_decoder(r, document["decoder"], byte_level, parts);

  std::vector<AddedToken> added = read_added(r, document["added_tokens"], parts.vocabulary, map);
  int64_t ids = static_cast<int64_t>(parts.vocabulary.tokens.size());
  for (const AddedToken& t : added) ids = std::max<int64_t>(ids, t.id + 1);
  parts.added = AddedTokens(std::move(added), [&](const std::string& name) {
    std::string normalized = name;
    for (const Normalizer& n : parts.normalizers) n.apply(normalized, false);
    return normalized;
  });
  if (byte_level) {
    BpeRules& bpe = std::get<BpeRules>(parts.model);
    bpe.byte_level = true;
    for (size_t byte = 0; byte < 256; ++byte) bpe.byte_ids[byte] = map.find(byte_character(static_cast<int>(byte)));
    // (From here on `map` is of no use: it points into the names.)
    for (std::string& token : parts.vocabulary.tokens)
      token = stands_for_bytes(token) ? bytes_of_characters(token) : "";  // of an added token, which has its name there
    for (auto& [token, id] : parts.vocabulary.more) token = bytes_of_characters(token);
  }
  read_post_processor(r, document["post_processor"], ids, parts);
  return parts;
}

}  // namespace llm
