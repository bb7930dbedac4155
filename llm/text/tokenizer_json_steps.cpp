#include <algorithm>

#include "llm/base/json.h"
#include "llm/text/byte_level.h"
#include "llm/text/tokenizer_json_reader.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

bool is_one_blank(const Json& step) { return step["pattern"]["String"] == " "; }

SplitBehavior behavior_of(const JsonReader& r, const Json& step, SplitBehavior otherwise) {
  const std::string name = r.text(step, "behavior");
  if (name.empty()) return otherwise;
  // The second spelling is the library's own in Python.
  constexpr const char* names[][2] = {{"Isolated", "isolated"},
                                      {"Removed", "removed"},
                                      {"MergedWithPrevious", "merged_with_previous"},
                                      {"MergedWithNext", "merged_with_next"},
                                      {"Contiguous", "contiguous"}};
  for (size_t i = 0; i < std::size(names); ++i)
    if (name == names[i][0] || name == names[i][1]) return static_cast<SplitBehavior>(i);
  r.wrong("a ", r.type(step), " of behavior ", JsonReader::shown(name),
          " is not supported; supported: Isolated, Removed, MergedWithPrevious, MergedWithNext, Contiguous");
}

Normalizer read_one_normalizer(const JsonReader& r, const Json& n) {
  const std::string kind = r.type(n);
  if (kind == "NFC") return normal_form_normalizer(NormalForm::nfc);
  if (kind == "NFD") return normal_form_normalizer(NormalForm::nfd);
  if (kind == "NFKC") return normal_form_normalizer(NormalForm::nfkc);
  if (kind == "NFKD") return normal_form_normalizer(NormalForm::nfkd);
  if (kind == "Lowercase") return lowercase_normalizer();
  if (kind == "StripAccents") return strip_accents_normalizer();
  if (kind == "Strip") return strip_normalizer(r.flag(n, "strip_left", true), r.flag(n, "strip_right", true));
  if (kind == "Prepend") return prepend_normalizer(r.text(n, "prepend"));
  if (kind == "Replace") return replace_normalizer(r.pattern(n), r.text(n, "content"));
  if (kind == "Nmt") return nmt_normalizer();
  if (kind == "ByteLevel") return {[](std::string& text, bool) { text = characters_of_bytes(text); }, false};
  if (kind == "Precompiled") return precompiled_normalizer(r, r.text(n, "precompiled_charsmap"));
  if (kind == "BertNormalizer") {
    const bool lowercase = r.flag(n, "lowercase", true);
    return bert_normalizer({r.flag(n, "clean_text", true), r.flag(n, "handle_chinese_chars", true),
                            r.flag(n, "strip_accents", lowercase), lowercase});
  }
  r.wrong("a normalizer of type ", JsonReader::shown(kind),
          " is not supported; supported: NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Strip, Prepend, Replace, Nmt, "
          "ByteLevel, Precompiled, BertNormalizer, Sequence");
}

// A step that cuts at single characters, or runs of them.
PreTokenizer by_character(const JsonReader& r, const std::string& pattern, SplitBehavior behavior) {
  PreTokenizer step;
  step.pattern.emplace(pattern, r.path);
  step.behavior = behavior;
  step.by_character = true;
  return step;
}

PreTokenizer at_white_space(const JsonReader& r) {
  PreTokenizer step = by_character(r, "\\s+", SplitBehavior::removed);
  step.cuts_before_words = true;
  return step;
}

PreTokenizer metaspace(const JsonReader& r, const Json& p) {
  PreTokenizer step;
  step.blank = r.text(p, "replacement");
  if (step.blank.empty()) r.wrong("a Metaspace has no \"replacement\"");
  // Older files have "add_prefix_space" instead.
  const std::string scheme = r.text(p, "prepend_scheme");
  if (scheme.empty() ? r.flag(p, "add_prefix_space", true) : scheme != "never") step.prefix = step.blank;
  step.prefix_first_only = scheme == "first";
  if (!r.flag(p, "split", true)) return step;
  step.pattern.emplace(literal_pattern(step.blank), r.path);
  step.behavior = SplitBehavior::merged_with_next;
  return step;
}

// WordPiece's: a token that does not begin with `prefix` begins a word.
void decode_word_piece(std::string& token, const std::string& prefix, bool cleanup) {
  if (!prefix.empty() && token.starts_with(prefix)) {
    token.erase(0, prefix.size());
  } else {
    token.insert(0, 1, ' ');
  }
  constexpr const char* cleaned[][2] = {{" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
                                        {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
                                        {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : cleaned)
    if (cleanup) token = with_replaced(token, from, to);
}

}  // namespace

void read_normalizer(const JsonReader& r, const Json& normalizer, TokenizerParts& parts) {
  for (const Json* n : r.steps(normalizer, "normalizers")) {
    parts.normalizers.push_back(read_one_normalizer(r, *n));
    if (r.type(*n) == "Replace" && is_one_blank(*n)) parts.blank = r.text(*n, "content");
  }
  if (parts.blank.empty()) parts.blank = " ";
}

bool read_pre_tokenizer(const JsonReader& r, const Json& pre_tokenizer, bool byte_level, TokenizerParts& parts) {
  const bool blanks = parts.blank == " ";  // there are some in the text still
  const std::vector<const Json*> steps = r.steps(pre_tokenizer, "pretokenizers");
  bool left_to_model = false;
  for (const Json* item : steps) {
    const Json& p = *item;
    const std::string kind = r.type(p);
    std::vector<PreTokenizer>& to = parts.pre_tokenizers;
    if (kind == "ByteLevel") {
      PreTokenizer step;
      if (r.flag(p, "use_regex", true)) step = isolated_split(split_pattern_named("gpt2"), r.path);
      if (r.flag(p, "add_prefix_space", true)) step.prefix = " ";
      left_to_model = byte_level && item == steps.back();
      if (step.pattern || !step.prefix.empty()) to.push_back(std::move(step));
      if (left_to_model) continue;
      PreTokenizer characters;
      characters.byte_characters = true;
      to.push_back(std::move(characters));
    } else if (kind == "Split") {
      if (!blanks && is_one_blank(p)) continue;  // it never matches
      PreTokenizer step = isolated_split(r.pattern(p).text(), r.path);
      step.behavior = behavior_of(r, p, SplitBehavior::isolated);
      step.invert = r.flag(p, "invert", false);
      to.push_back(std::move(step));
    } else if (kind == "Digits") {
      to.push_back(by_character(r, concat(kDigitPattern, r.flag(p, "individual_digits", false) ? "" : "+"),
                                SplitBehavior::isolated));
    } else if (kind == "Punctuation") {
      to.push_back(by_character(r, kPunctuationPattern, behavior_of(r, p, SplitBehavior::isolated)));
    } else if (kind == "Whitespace") {
      PreTokenizer step = isolated_split(kWhitespacePattern, r.path);
      step.behavior = SplitBehavior::removed;
      step.invert = step.cuts_before_words = true;
      to.push_back(std::move(step));
    } else if (kind == "WhitespaceSplit") {
      to.push_back(at_white_space(r));
    } else if (kind == "BertPreTokenizer") {
      to.push_back(at_white_space(r));
      to.push_back(by_character(r, kPunctuationPattern, SplitBehavior::isolated));
    } else if (kind == "CharDelimiterSplit") {
      to.push_back(by_character(r, literal_pattern(r.text(p, "delimiter")), SplitBehavior::removed));
    } else if (kind == "FixedLength") {
      to.push_back(isolated_split(concat("(?m:.{1,", std::max<size_t>(1, r.count(p, "length", 5)), "})"), r.path));
    } else if (kind == "Metaspace") {
      to.push_back(metaspace(r, p));
      to.back().cuts_before_words = to.back().pattern.has_value();
      parts.blank = to.back().blank;
    } else {
      r.wrong("a pre_tokenizer of type ", JsonReader::shown(kind),
              " is not supported; supported: ByteLevel, Split, Digits, Punctuation, Whitespace, WhitespaceSplit, "
              "BertPreTokenizer, CharDelimiterSplit, FixedLength, Metaspace, Sequence");
    }
  }
  for (PreTokenizer& step : parts.pre_tokenizers) step.cuts_before_words = step.cuts_before_words && blanks;
  return left_to_model;
}

void read_decoder(const JsonReader& r, const Json& decoder, bool byte_level, TokenizerParts& parts) {
  for (const Json* item : r.steps(decoder, "decoders")) {
    const Json& d = *item;
    const std::string kind = r.type(d);
    if (kind == "Strip") {
      parts.strip_leading_blank |= r.text(d, "content") == " " && d["start"] == 1;
    } else if (kind == "Metaspace") {
      const std::string scheme = r.text(d, "prepend_scheme");
      parts.strip_leading_blank |= scheme.empty() ? r.flag(d, "add_prefix_space", true) : scheme != "never";
      parts.decoders.push_back(replacing_decoder(r.text(d, "replacement"), " "));
    } else if (kind == "ByteLevel" && !byte_level) {
      parts.decoders.push_back([](std::string& token) { token = bytes_of_characters(token); });
    } else if (kind == "ByteFallback") {
      parts.decoders.push_back(decode_byte_token);
    } else if (kind == "Replace") {
      const auto replace = replace_normalizer(r.pattern(d), r.text(d, "content"));
      parts.decoders.push_back([replace](std::string& token) { replace.apply(token, false); });
    } else if (kind == "WordPiece") {
      const std::string prefix = r.text(d, "prefix");
      const bool cleanup = r.flag(d, "cleanup", true);
      parts.decoders.push_back([=](std::string& token) { decode_word_piece(token, prefix, cleanup); });
      parts.strip_leading_blank = true;
      parts.keeps_added = false;
    } else if (kind == "BPEDecoder") {
      parts.decoders.push_back(replacing_decoder(r.text(d, "suffix"), " "));
    }
  }
  if (!decoder.is_null() || byte_level) return;
  // Without a decoder the library puts a blank between tokens. Where they say themselves where blanks are, those are put.
  if (parts.blank != " ") return parts.decoders.push_back(replacing_decoder(parts.blank, " "));
  parts.decoders.push_back([](std::string& token) { token.insert(0, 1, ' '); });
  parts.strip_leading_blank = true;
  parts.keeps_added = false;
}

// <s> in front and </s> behind; nothing for ByteLevel, which only knows about offsets.
void read_post_processor(const JsonReader& r, const Json& processor, int64_t vocabulary, TokenizerParts& parts) {
  const auto checked = [&](const Json& value, const std::string& name) {
    const int32_t token = r.id(value, name);
    if (token >= vocabulary) r.wrong("the post_processor's token ", token, " is none");
    return token;
  };
  for (const Json* item : r.steps(processor, "processors")) {
    const Json& p = *item;
    const std::string kind = r.type(p);
    if (kind == "ByteLevel") continue;
    if (kind == "RobertaProcessing" || kind == "BertProcessing") {
      for (const char* key : {"cls", "sep"}) {
        const Json& token = p[key];
        if (!token.is_array() || token.size() != 2 || !token[0].is_string())
          r.wrong("the post_processor's \"", key, "\" is not a token and its id");
        (*key == 'c' ? parts.prefix : parts.suffix).push_back(checked(token[1], token[0].get<std::string>()));
      }
      continue;
    }
    if (kind != "TemplateProcessing")
      r.wrong(
          "a post_processor of type ", JsonReader::shown(kind),
          " is not supported; supported: TemplateProcessing, RobertaProcessing, BertProcessing, ByteLevel, Sequence");
    bool before = true;
    for (const Json& part : r.list(p, "single")) {
      if (part.contains("Sequence")) {
        before = false;
        continue;
      }
      const std::string name = r.text(part["SpecialToken"], "id");
      const Json& ids = p["special_tokens"][name.c_str()]["ids"];
      if (!ids.is_array())
        r.wrong("the post_processor names the special token ", JsonReader::shown(name), " but not its ids");
      for (const Json& value : ids) (before ? parts.prefix : parts.suffix).push_back(checked(value, name));
    }
  }
}

}  // namespace llm
