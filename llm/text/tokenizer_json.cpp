#include "llm/text/tokenizer_json.h"

#include <algorithm>
#include <tuple>

#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/text/byte_level.h"

namespace llm {
namespace {

// Vocabularies in use have up to 262,144 tokens; the limit is there so that a wrong id does not fill the memory.
constexpr int64_t kLargestVocabulary = int64_t{1} << 22;

class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path) {}

  template <class... Parts>
  [[noreturn]] void wrong(const Parts&... parts) const {
    fail(path_, ": ", parts...);
  }

  const Json& list(const Json& object, const char* key) const {
    const Json& value = object[key];
    if (!value.is_array()) wrong("not a tokenizer.json, it has no proper \"", key, "\"");
    return value;
  }
  bool flag(const Json& object, const char* key, bool otherwise) const {
    const Json& value = object[key];
    if (value.is_null()) return otherwise;
    if (!value.is_boolean()) wrong("\"", key, "\" is not true or false");
    return value.get<bool>();
  }
  std::string text(const Json& object, const char* key) const {
    const Json& value = object[key];
    if (value.is_null()) return "";
    if (!value.is_string()) wrong("\"", key, "\" is not a string");
    return value.get<std::string>();
  }
  std::string type(const Json& object) const {
    return object.is_null() ? "" : object["type"].is_string() ? text(object, "type") : "?";
  }
  int32_t id(const Json& value, const std::string& of) const {
    if (!value.is_number_unsigned() || value.get<uint64_t>() >= static_cast<uint64_t>(kLargestVocabulary))
      wrong("the id of token ", shown(of), " is not a whole number below ", kLargestVocabulary);
    return value.get<int32_t>();
  }
  // A string from the file on one line.
  static std::string shown(const std::string& text) { return llm::shown(text.substr(0, 100)); }

  void normalizer(const Json& n, BpeParts& parts, int depth = 0) const {
    const std::string kind = type(n);
    Normalization& to = parts.normalization;
    if (n.is_null()) return;
    if (kind == "Sequence" && depth < 4) {
      for (const Json& part : list(n, "normalizers")) normalizer(part, parts, depth + 1);
    } else if (kind == "NFC") {
      if (to.prefix != Normalization::Prefix::none || to.blank != " ") unsupported_order("normalizer");
      to.nfc = true;
    } else if (kind == "Prepend") {
      const std::string what = text(n, "prepend");
      if (to.prefix != Normalization::Prefix::none || (what != " " && what != kBlank) || to.blank == kBlank)
        unsupported_order("normalizer");
      to.prefix = Normalization::Prefix::always;
      prepends_ = what;
    } else if (kind == "Replace") {
      if (text(n["pattern"], "String") != " " || text(n, "content") != kBlank) unsupported_order("normalizer");
      to.blank = kBlank;
    } else {
      wrong("a normalizer of type ", shown(kind), " is not supported; supported: NFC, Prepend, Replace, Sequence");
    }
  }

  void pre_tokenizer(const Json& p, BpeParts& parts, int depth = 0) const {
    const std::string kind = type(p);
    if (p.is_null()) return;
    Normalization& to = parts.normalization;
    if (kind == "Sequence" && depth < 4) {
      for (const Json& part : list(p, "pretokenizers")) pre_tokenizer(part, parts, depth + 1);
    } else if (kind == "ByteLevel") {
      byte_level_ = true;
      if (flag(p, "add_prefix_space", true)) {
        if (!parts.splits.empty()) unsupported_order("pre_tokenizer");
        to.prefix = Normalization::Prefix::if_missing;
      }
      if (flag(p, "use_regex", true)) parts.splits.emplace_back(split_pattern_named("gpt2"), path_);
    } else if (kind == "Split") {
      const std::string behavior = text(p, "behavior");
      const bool invert = flag(p, "invert", false);
      // "Removed" and "invert": what does not match is removed, which is nothing where a pattern takes all there is.
      if (behavior != "Isolated" && !(behavior == "Removed" && invert))
        wrong("a Split of behavior ", shown(behavior), " is not supported; supported: Isolated");
      const Json& pattern = p["pattern"];
      if (!pattern["Regex"].is_string() && !pattern["String"].is_string()) wrong("a Split has no pattern");
      parts.splits.emplace_back(
          pattern["Regex"].is_string() ? text(pattern, "Regex") : literal(text(pattern, "String")), path_);
    } else if (kind == "Digits") {
      parts.splits.emplace_back(flag(p, "individual_digits", false) ? "\\p{N}" : "\\p{N}+", path_);
    } else if (kind == "Metaspace") {
      if (text(p, "replacement") != kBlank || !parts.splits.empty()) unsupported_order("pre_tokenizer");
      // Older files have "add_prefix_space" instead.
      const std::string scheme = text(p, "prepend_scheme");
      if (scheme.empty() ? flag(p, "add_prefix_space", true) : scheme != "never")
        to.prefix = Normalization::Prefix::if_missing;
      to.prefix_first_only = scheme == "first";
      to.blank = kBlank;
      if (flag(p, "split", true)) parts.splits.emplace_back(blank_split(to), path_);
    } else {
      wrong("a pre_tokenizer of type ", shown(kind),
            " is not supported; supported: ByteLevel, Split, Digits, Metaspace, Sequence");
    }
  }

  void decoder(const Json& d, BpeParts& parts, int depth = 0) const {
    const std::string kind = type(d);
    if (kind == "Sequence" && depth < 4) {
      for (const Json& part : list(d, "decoders")) decoder(part, parts, depth + 1);
    } else if (kind == "Strip") {
      parts.strip_leading_blank |= text(d, "content") == " " && d["start"] == 1;
    } else if (kind == "Metaspace") {
      parts.strip_leading_blank |= parts.normalization.prefix != Normalization::Prefix::none;
    } else if (kind == "ByteLevel") {
      byte_level_ = true;
    }
  }

  // <s> in front and </s> behind, of TemplateProcessing; nothing for ByteLevel, which only knows about offsets.
  void post_processor(const Json& p, BpeParts& parts, int depth = 0) const {
    const std::string kind = type(p);
    if (p.is_null() || kind == "ByteLevel") return;
    if (kind == "Sequence" && depth < 4) {
      for (const Json& part : list(p, "processors")) post_processor(part, parts, depth + 1);
      return;
    }
    if (kind != "TemplateProcessing") wrong("a post_processor of type ", shown(kind), " is not supported");
    bool before = true;
    for (const Json& item : list(p, "single")) {
      if (item.contains("Sequence")) {
        before = false;
        continue;
      }
      const std::string name = text(item["SpecialToken"], "id");
      const Json& ids = p["special_tokens"][name.c_str()]["ids"];
      if (!ids.is_array()) wrong("the post_processor names the special token ", shown(name), " but not its ids");
      for (const Json& value : ids) {
        const int32_t token = id(value, name);
        if (static_cast<size_t>(token) >= parts.tokens.size()) wrong("the post_processor's token ", token, " is none");
        (before ? parts.prefix : parts.suffix).push_back(token);
      }
    }
  }

  // The tokens as the file writes them, by id, and their ids by name.
  std::vector<std::string> vocabulary(const Json& model) const {
    const Json& vocab = model["vocab"];
    if (!vocab.is_object()) wrong("not a tokenizer.json, its \"model\" has no \"vocab\"");
    std::vector<std::string> tokens;
    for (auto& [name, value] : vocab.items()) put(tokens, id(value, name), name);
    return tokens;
  }

  void put(std::vector<std::string>& tokens, int32_t id, const std::string& name) const {
    const auto at = static_cast<size_t>(id);
    if (at >= tokens.size()) tokens.resize(at + 1);
    if (!tokens[at].empty() && tokens[at] != name)
      wrong("the id ", id, " is that of ", shown(tokens[at]), " and of ", shown(name));
    tokens[at] = name;
  }

  std::vector<Merge> merges(const Json& model, const TokenMap& map) const {
    std::vector<Merge> result;
    std::string joined;
    for (const Json& item : list(model, "merges")) {
      const std::string where = concat("merge number ", result.size());
      std::string left, right;
      if (item.is_string()) {
        const std::string& both = item.string();
        const size_t blank = both.find(' ', 1);
        if (blank == both.npos) wrong(where, " is not two tokens: ", shown(both));
        left = both.substr(0, blank), right = both.substr(blank + 1);
      } else if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
        left = item[0].get<std::string>(), right = item[1].get<std::string>();
      } else {
        wrong(where, " is not two tokens");
      }
      const int32_t a = map.find(left), b = map.find(right), c = map.find(left + right);
      if (a < 0 || b < 0 || c < 0)
        wrong(where, ": ", shown(a < 0 ? left : b < 0 ? right : left + right), " is no token of the vocabulary");
      result.push_back({a, b, c, static_cast<int32_t>(result.size())});
    }
    return result;
  }

  bool byte_level() const { return byte_level_; }
  void check_prefix(const Normalization& n) const {
    if (!prepends_.empty() && prepends_ != n.blank) unsupported_order("normalizer");
  }

  static constexpr char kBlank[] = "\u2581";  // ▁

 private:
  static std::string literal(const std::string& text) {
    std::string pattern;
    for (const char c : text) {
      if (std::string_view("\\^$.[]|()?*+{}").find(c) != std::string_view::npos) pattern += '\\';
      pattern += c;
    }
    return pattern;
  }
  [[noreturn]] void unsupported_order(const char* what) const {
    wrong("this combination of steps in the ", what, " is not supported");
  }

  const std::string& path_;
  mutable bool byte_level_ = false;
  mutable std::string prepends_;
};

}  // namespace

BpeParts parse_tokenizer_json(const Json& document, const std::string& path) {
  const Reader r(path);
  const Json& model = document["model"];
  if (!model.is_object()) r.wrong("not a tokenizer.json, it has no proper \"model\"");
  // Older files do not name the type.
  if (const std::string kind = r.type(model); kind != "BPE" && !(kind == "?" && model.contains("merges")))
    r.wrong("a tokenizer of type ", Reader::shown(kind), " is not supported; supported: BPE");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!r.text(model, key).empty()) r.wrong("\"", key, "\" is not supported");
  if (const Json& dropout = model["dropout"]; !dropout.is_null() && dropout != 0.0)
    r.wrong("\"dropout\" is not supported");

  BpeParts parts;
  parts.where = path;
  r.normalizer(document["normalizer"], parts);
  r.pre_tokenizer(document["pre_tokenizer"], parts);
  r.check_prefix(parts.normalization);
  r.decoder(document["decoder"], parts);
  parts.byte_level = r.byte_level();

  std::vector<std::string> names = r.vocabulary(model);
  const TokenMap map({names.begin(), names.end()});
  parts.merges = r.merges(model, map);
  parts.byte_ids.fill(-1);
  const bool fallback = r.flag(model, "byte_fallback", false);
  for (size_t byte = 0; byte < 256; ++byte) {
    constexpr char digits[] = "0123456789ABCDEF";
    if (parts.byte_level) {
      parts.byte_ids[byte] = map.find(byte_character(static_cast<int>(byte)));
    } else if (fallback) {
      parts.byte_ids[byte] = map.find(std::string{'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'});
    }
  }
  if (const std::string unknown = r.text(model, "unk_token"); !unknown.empty()) {
    parts.unknown = map.find(unknown);
    if (parts.unknown < 0) r.wrong("the unk_token ", Reader::shown(unknown), " is no token of the vocabulary");
  }
  parts.fuse_unknown = r.flag(model, "fuse_unk", false);
  parts.whole_pieces = r.flag(model, "ignore_merges", false);

  std::vector<AddedToken> added;
  const Json& list = document["added_tokens"];
  if (!list.is_null() && !list.is_array()) r.wrong("\"added_tokens\" is not a list");
  for (const Json& item : list) {
    AddedToken t{.name = r.text(item, "content"), .special = r.flag(item, "special", false)};
    if (t.name.empty()) r.wrong("an added token without \"content\"");
    t.id = r.id(item["id"], t.name);
    t.strip_left = r.flag(item, "lstrip", false), t.strip_right = r.flag(item, "rstrip", false);
    if (r.flag(item, "single_word", false))
      r.wrong("the added token ", Reader::shown(t.name), " is a \"single_word\", which is not supported");
    r.put(names, t.id, t.name);
    added.push_back(std::move(t));
  }
  parts.added = AddedTokens(std::move(added));

  parts.tokens = std::move(names);
  if (parts.tokens.empty()) r.wrong("the vocabulary is empty");
  if (parts.byte_level)
    for (std::string& token : parts.tokens) token = bytes_of_characters(token);
  r.post_processor(document["post_processor"], parts);
  return parts;
}

std::string tokenizer_json(const BpeParts& parts) {
  // A token as the file writes it.
  const auto name = [&](const std::string& token) { return parts.byte_level ? characters_of_bytes(token) : token; };
  std::vector<bool> is_added(parts.tokens.size());
  Json added = Json::array();
  std::vector<AddedToken> by_id = parts.added.tokens();
  std::sort(by_id.begin(), by_id.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  for (const AddedToken& t : by_id) {
    is_added[static_cast<size_t>(t.id)] = true;
    added.push_back({{"id", t.id},
                     {"content", t.name},
                     {"single_word", false},
                     {"lstrip", t.strip_left},
                     {"rstrip", t.strip_right},
                     {"normalized", false},
                     {"special", t.special}});
  }
  std::string vocabulary_text = "{";  // with each token on a line of its own, and each merge
  for (size_t id = 0; id < parts.tokens.size(); ++id) {
    if (parts.tokens[id].empty()) continue;
    const std::string token = is_added[id] ? parts.tokens[id] : name(parts.tokens[id]);
    vocabulary_text += concat(vocabulary_text.size() > 1 ? ",\n      " : "\n      ", Json(token).dump(), ": ", id);
  }
  vocabulary_text += "\n    }";

  std::vector<Merge> order = parts.merges;
  std::stable_sort(order.begin(), order.end(), [](const Merge& a, const Merge& b) {
    return std::tie(a.rank, a.left, a.right) < std::tie(b.rank, b.left, b.right);
  });
  std::string merges_text = "[";
  for (const Merge& m : order)
    merges_text += concat(merges_text.size() > 1 ? ",\n      " : "\n      ", "[",
                          Json(name(parts.tokens[static_cast<size_t>(m.left)])).dump(), ", ",
                          Json(name(parts.tokens[static_cast<size_t>(m.right)])).dump(), "]");
  merges_text += order.empty() ? "]" : "\n    ]";

  Json normalizer, pre_tokenizer, decoder, post_processor, unknown;
  if (parts.byte_level) {
    const Json bytes = {
        {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
    decoder = bytes;
    Json steps = Json::array();
    for (const SplitPattern& split : parts.splits)
      steps.push_back(
          {{"type", "Split"}, {"pattern", {{"Regex", split.text()}}}, {"behavior", "Isolated"}, {"invert", false}});
    steps.push_back(bytes);
    pre_tokenizer = {{"type", "Sequence"}, {"pretokenizers", steps}};
  } else {
    const Json blank = {{"String", " "}}, written = {{"String", parts.normalization.blank}};
    normalizer = {{"type", "Sequence"},
                  {"normalizers",
                   {{{"type", "Prepend"}, {"prepend", parts.normalization.blank}},
                    {{"type", "Replace"}, {"pattern", blank}, {"content", parts.normalization.blank}}}}};
    decoder = {{"type", "Sequence"},
               {"decoders",
                {{{"type", "Replace"}, {"pattern", written}, {"content", " "}},
                 {{"type", "ByteFallback"}},
                 {{"type", "Fuse"}},
                 {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}};
  }
  if (!parts.prefix.empty()) {
    Json single = Json::array(), special = Json::object();
    for (const int32_t id : parts.prefix) {
      const std::string& token = parts.tokens[static_cast<size_t>(id)];
      single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
      special[token] = {{"id", token}, {"ids", {id}}, {"tokens", {token}}};
    }
    Json pair = single;
    single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    pair.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
    post_processor = {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
  }
  if (parts.unknown >= 0) unknown = parts.tokens[static_cast<size_t>(parts.unknown)];
  const Json document = {{"version", "1.0"},
                         {"truncation", nullptr},
                         {"padding", nullptr},
                         {"added_tokens", added},
                         {"normalizer", normalizer},
                         {"pre_tokenizer", pre_tokenizer},
                         {"post_processor", post_processor},
                         {"decoder", decoder},
                         {"model",
                          {{"type", "BPE"},
                           {"dropout", nullptr},
                           {"unk_token", unknown},
                           {"continuing_subword_prefix", nullptr},
                           {"end_of_word_suffix", nullptr},
                           {"fuse_unk", parts.fuse_unknown},
                           {"byte_fallback", !parts.byte_level},
                           {"ignore_merges", parts.whole_pieces},
                           {"vocab", "VOCABULARY"},
                           {"merges", "MERGES"}}}};
  std::string text = document.dump(2) + "\n";
  text.replace(text.rfind("\"VOCABULARY\""), 12, vocabulary_text);
  text.replace(text.rfind("\"MERGES\""), 8, merges_text);
  return text;
}

}  // namespace llm
