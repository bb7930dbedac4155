#include "llm/text/gguf_tokenizer.h"

#include <algorithm>
#include <functional>
#include <map>

#include "llm/base/error.h"
#include "llm/text/bytes.h"
#include "llm/text/rank_files.h"
#include "llm/text/split_pattern.h"
#include "llm/text/tokenizer_json.h"

namespace llm {
namespace {

// llama.cpp's types of tokens.
enum TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

constexpr char kDocument[] = "tokenizer.huggingface.json";
constexpr char kNoPattern[] = "default";

// llama.cpp's names for ways to cut text into words, with the pattern of each.
std::vector<std::pair<std::string, std::string>> known_patterns() {
  return {
      {"gpt-2", split_pattern_named("gpt2")},
      {"llama-bpe",
       R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
      {"qwen2",
       R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
      {"gpt-4o", split_pattern_named("o200k_base")}};
}

struct Tokens {
  std::vector<std::string> names;
  std::vector<int32_t> types;
  int bos = -1, unknown = -1;
  bool add_bos = false;

  explicit Tokens(const GgufContent& g) : names(g.texts("tokenizer.ggml.tokens")) {
    if (g.has("tokenizer.ggml.token_type"))
      for (const double type : g.numbers("tokenizer.ggml.token_type")) types.push_back(static_cast<int32_t>(type));
    types.resize(names.size(), kNormal);
    bos = id(g, "tokenizer.ggml.bos_token_id"), unknown = id(g, "tokenizer.ggml.unknown_token_id");
  }
  int id(const GgufContent& g, const char* key) const {
    const uint64_t value = g.whole(key, names.size());
    return value < names.size() ? static_cast<int>(value) : -1;
  }
  bool is_added(size_t i) const { return types[i] == kControl || types[i] == kUserDefined || types[i] == kUnknown; }
};

TokenizerParts byte_level(const GgufContent& g, const Tokens& tokens) {
  const std::string cut = g.has("tokenizer.ggml.pre") ? g.text("tokenizer.ggml.pre") : "gpt-2";
  std::string pattern, known;
  for (const auto& [name, text] : known_patterns()) {
    if (cut == name) pattern = text;
    known += (known.empty() ? "" : ", ") + name;
  }
  if (pattern.empty())
    fail(g.path, ": tokenizer.ggml.pre is ", shown(cut), ", a way to cut text that is not known; known: ", known);
  Json::Members vocabulary;
  Json added = Json::array(), merges = Json::array();
  for (size_t i = 0; i < tokens.names.size(); ++i) {
    if (tokens.is_added(i))
      added.push_back({{"id", i}, {"content", tokens.names[i]}, {"special", tokens.types[i] != kUserDefined}});
    else if (tokens.types[i] != kUnused)
      vocabulary.emplace_back(tokens.names[i], i);
  }
  if (g.has("tokenizer.ggml.merges"))
    for (std::string& merge : g.texts("tokenizer.ggml.merges")) merges.push_back(std::move(merge));
  const Json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const Json split = {
      {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  Json post_processor;
  if (tokens.bos >= 0 && g.flag("tokenizer.ggml.add_bos_token", cut == "llama-bpe")) {
    const std::string& bos = tokens.names[static_cast<size_t>(tokens.bos)];
    Json special = Json::object();
    special[bos] = {{"id", bos}, {"ids", Json::array({tokens.bos})}, {"tokens", Json::array({bos})}};
    post_processor = {{"type", "TemplateProcessing"},
                      {"single", Json::array({{{"SpecialToken", {{"id", bos}, {"type_id", 0}}}},
                                              {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}})},
                      {"special_tokens", special}};
  }
  const Json document = {{"added_tokens", added},
                         {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", Json::array({split, bytes})}}},
                         {"post_processor", post_processor},
                         {"decoder", bytes},
                         {"model",
                          {{"type", "BPE"},
                           {"ignore_merges", cut == "llama-bpe"},
                           {"vocab", Json(std::move(vocabulary))},
                           {"merges", merges}}}};
  TokenizerParts parts = parse_tokenizer_json(document, g.path);
  return parts;
}

TokenizerParts sentencepiece(const GgufContent& g, const Tokens& tokens) {
  const std::vector<double> scores = g.numbers("tokenizer.ggml.scores");
  if (scores.size() != tokens.names.size())
    fail(g.path, ": ", tokens.names.size(), " tokens, but ", scores.size(), " scores");
  std::vector<AddedToken> added;
  for (size_t i = 0; i < tokens.names.size(); ++i)
    if (tokens.is_added(i)) {
      added.push_back({tokens.names[i], static_cast<int32_t>(i)});
      added.back().special = tokens.types[i] != kUserDefined;
    }
  std::vector<int32_t> prefix;
  if (tokens.bos >= 0 && g.flag("tokenizer.ggml.add_bos_token", true)) prefix = {tokens.bos};
  return sentencepiece_bpe(tokens.names, {scores.begin(), scores.end()}, std::move(added), prefix, tokens.unknown,
                           g.flag("tokenizer.ggml.add_space_prefix", true), g.path);
}

// Whether a part of a tokenizer.json, or one of its parts, is of a type.
bool has_type(const Json& part, std::string_view type) {
  if (part["type"].is_string() && part["type"].string() == type) return true;
  for (const auto& [key, value] : part.items())
    if (has_type(value, type)) return true;
  return std::any_of(part.begin(), part.end(), [&](const Json& item) { return has_type(item, type); });
}

// The pattern by which the pre-tokenizer cuts; empty: it does not.
std::string pattern_of(const Json& part) {
  if (part["pattern"]["Regex"].is_string()) return part["pattern"]["Regex"].string();
  if (part["type"] == "ByteLevel" && part["use_regex"] != false) return split_pattern_named("gpt2");
  std::string found;
  for (const Json& step : part["pretokenizers"])
    if (found.empty()) found = pattern_of(step);
  return found;
}

}  // namespace

std::unique_ptr<Tokenizer> tokenizer_of_gguf(const GgufContent& g) {
  if (g.has(kDocument)) {
    const std::string text = g.text(kDocument);
    const Json document = parse_json(text, concat(g.path, ": ", kDocument));
    if (is_bytes_tokenizer(document)) return make_bytes_tokenizer();
    TokenizerParts parts = parse_tokenizer_json(document, concat(g.path, ": ", kDocument));
    parts.json = text;
    return make_tokenizer(std::move(parts));
  }
  const std::string kind = g.has("tokenizer.ggml.model") ? g.text("tokenizer.ggml.model") : "none";
  if (kind == "none" || kind == "no_vocab") return nullptr;
  if (kind == "gpt2") return make_tokenizer(byte_level(g, Tokens(g)));
  if (kind == "llama") return make_tokenizer(sentencepiece(g, Tokens(g)));
  fail(g.path, ": tokenizer.ggml.model is ", shown(kind), ", which is not supported; supported: gpt2 and llama");
}

std::string add_tokenizer(GgufFields& fields, const std::string& tokenizer_json, int64_t vocabulary,
                          const EndTokens& ends) {
  if (tokenizer_json.empty()) {
    fields.add("tokenizer.ggml.model", "none");
    return "";
  }
  const Json document = parse_json(tokenizer_json, "the tokenizer");
  const Json& model = document["model"];
  fields.add(kDocument, tokenizer_json);
  const bool bytes = has_type(document["decoder"], "ByteLevel"), bpe = model["type"] == "BPE";
  if (!bpe || (!bytes && model["byte_fallback"] != true)) {
    fields.add("tokenizer.ggml.model", "none");
    return concat("llama.cpp has no tokenizer like this one (", shown(model["type"]), "), so it takes token ids alone");
  }

  std::vector<std::string> tokens(static_cast<size_t>(vocabulary)), merges;
  std::vector<int32_t> types(tokens.size(), kUnused);
  std::vector<float> scores(tokens.size(), -1e9f);
  std::map<std::string, size_t> ids;
  const auto put = [&](const std::string& token, const Json& number, int32_t type) {
    const auto id = number.get<size_t>();
    if (id >= tokens.size()) fail("the tokenizer's token ", shown(token), " is beyond the vocabulary of ", vocabulary);
    tokens[id] = token, types[id] = type, ids[token] = id;
  };
  for (const auto& [token, id] : model["vocab"].items()) {
    const bool is_byte = !bytes && token.size() == 6 && token.starts_with("<0x") && token.ends_with('>');
    put(token, id, is_byte ? kByte : kNormal);
    if (!bytes && token == model["unk_token"]) types[ids[token]] = kUnknown;
  }
  for (const Json& token : document["added_tokens"]) {
    const std::string& name = token["content"].string();
    const bool is_unknown = !bytes && name == model["unk_token"];
    put(name, token["id"], is_unknown ? kUnknown : token["special"] == true ? kControl : kUserDefined);
  }
  for (size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i].empty()) tokens[i] = concat("[PAD", i, "]");
  for (const Json& merge : model["merges"]) {
    const std::string text = merge.is_string() ? merge.string() : concat(merge[0].string(), " ", merge[1].string());
    std::string whole = text;
    whole.erase(whole.find(' ', 1), 1);  // a part may begin with a blank where the names have blanks
    if (const auto found = ids.find(whole); found != ids.end() && scores[found->second] == -1e9f)
      scores[found->second] = -static_cast<float>(merges.size());
    merges.push_back(text);
  }

  std::string lost;
  fields.add("tokenizer.ggml.model", bytes ? "gpt2" : "llama");
  if (bytes) {
    const std::string pattern = pattern_of(document["pre_tokenizer"]);
    std::string name = merges.empty() ? "gpt-2" : kNoPattern;
    for (const auto& [known, text] : known_patterns())
      if (text == pattern) name = known;
    if (name == kNoPattern)
      lost = "llama.cpp has no name for how this tokenizer cuts text into words, and may cut otherwise";
    fields.add("tokenizer.ggml.pre", name);
  } else {
    fields.add("tokenizer.ggml.pre", kNoPattern);
    fields.add("tokenizer.ggml.scores", scores);
    fields.add("tokenizer.ggml.add_space_prefix",
               has_type(document["normalizer"], "Prepend") || has_type(document["pre_tokenizer"], "Metaspace"));
  }
  fields.add("tokenizer.ggml.tokens", tokens);
  fields.add("tokenizer.ggml.token_type", types);
  if (bytes) fields.add("tokenizer.ggml.merges", merges);
  const bool bytes_alone = is_bytes_tokenizer(document);
  const std::vector<int32_t> prefix =
      bytes_alone ? std::vector<int32_t>()
                  : make_tokenizer(parse_tokenizer_json(document, "the tokenizer"))->text_prefix();
  fields.add("tokenizer.ggml.add_bos_token", !prefix.empty());
  const int bos = !prefix.empty() ? prefix[0] : ends.bos;
  if (bos >= 0) fields.add("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(bos));
  if (!ends.eos.empty()) fields.add("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(ends.eos[0]));
  if (ends.eos.size() > 1) fields.add("tokenizer.ggml.eot_token_id", static_cast<uint32_t>(ends.eos[1]));
  if (!bytes)
    for (size_t i = 0; i < types.size(); ++i)
      if (types[i] == kUnknown) fields.add("tokenizer.ggml.unknown_token_id", static_cast<uint32_t>(i));
  return lost;
}

}  // namespace llm
