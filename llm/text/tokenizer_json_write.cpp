#include <algorithm>
#include <map>
#include <tuple>

#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/text/byte_level.h"
#include "llm/text/tokenizer_json.h"

namespace llm {

std::string tokenizer_json(const TokenizerParts& parts) {
  const BpeRules& bpe = std::get<BpeRules>(parts.model);
  const std::vector<std::string>& tokens = parts.vocabulary.tokens;
  // A token as the file writes it.
  const auto name = [&](const std::string& token) { return bpe.byte_level ? characters_of_bytes(token) : token; };
  std::vector<std::pair<std::string, size_t>> names;
  std::map<int32_t, std::string> added_names;
  Json added = Json::array();
  std::vector<AddedToken> by_id = parts.added.tokens();
  std::sort(by_id.begin(), by_id.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  for (const AddedToken& t : by_id) {
    added_names[t.id] = t.name;
    added.push_back({{"id", t.id},
                     {"content", t.name},
                     {"single_word", t.single_word},
                     {"lstrip", t.strip_left},
                     {"rstrip", t.strip_right},
                     {"normalized", t.normalized},
                     {"special", t.special}});
  }
  for (size_t id = 0; id < tokens.size(); ++id)
    if (!tokens[id].empty() && !added_names.contains(static_cast<int32_t>(id)))
      names.emplace_back(name(tokens[id]), id);
  for (const auto& [id, added_name] : added_names) names.emplace_back(added_name, id);
  std::sort(names.begin(), names.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  std::string vocabulary_text = "{";  // an Json of 200,000 members would take minutes to fill
  for (const auto& [token, id] : names)
    vocabulary_text += concat(vocabulary_text.size() > 1 ? ",\n      " : "\n      ", Json(token).dump(), ": ", id);
  vocabulary_text += "\n    }";

  std::vector<Merge> order = bpe.merges;
  std::stable_sort(order.begin(), order.end(), [](const Merge& a, const Merge& b) {
    return std::tie(a.rank, a.left, a.right) < std::tie(b.rank, b.left, b.right);
  });
  std::string merges_text = "[";
  for (const Merge& m : order)
    merges_text += concat(merges_text.size() > 1 ? ",\n      " : "\n      ", "[",
                          Json(name(tokens[static_cast<size_t>(m.left)])).dump(), ", ",
                          Json(name(tokens[static_cast<size_t>(m.right)])).dump(), "]");
  merges_text += order.empty() ? "]" : "\n    ]";

  Json normalizer, pre_tokenizer, decoder, post_processor, unknown;
  if (bpe.byte_level) {
    const Json bytes = {
        {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
    decoder = bytes;
    Json steps = Json::array();
    for (const PreTokenizer& step : parts.pre_tokenizers)
      steps.push_back({{"type", "Split"},
                       {"pattern", {{"Regex", step.pattern->text()}}},
                       {"behavior", "Isolated"},
                       {"invert", false}});
    steps.push_back(bytes);
    pre_tokenizer = {{"type", "Sequence"}, {"pretokenizers", steps}};
  } else {
    const Json blank = {{"String", " "}}, written = {{"String", parts.blank}};
    normalizer = {{"type", "Sequence"},
                  {"normalizers",
                   {{{"type", "Prepend"}, {"prepend", parts.blank}},
                    {{"type", "Replace"}, {"pattern", blank}, {"content", parts.blank}}}}};
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
      const std::string& token = added_names.at(id);
      single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
      special[token] = {{"id", token}, {"ids", {id}}, {"tokens", {token}}};
    }
    Json pair = single;
    single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    pair.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
    post_processor = {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
  }
  if (bpe.unknown >= 0) unknown = tokens[static_cast<size_t>(bpe.unknown)];
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
                           {"fuse_unk", bpe.fuse_unknown},
                           {"byte_fallback", !bpe.byte_level},
                           {"ignore_merges", bpe.whole_pieces},
                           {"vocab", "VOCABULARY"},
                           {"merges", "MERGES"}}}};
  std::string text = document.dump(2) + "\n";
  text.replace(text.rfind("\"VOCABULARY\""), 12, vocabulary_text);
  text.replace(text.rfind("\"MERGES\""), 8, merges_text);
  return text;
}

}  // namespace llm
