#include "llm/text/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <oniguruma.h>
#include <pcre2.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "llm/base/error.h"
#include "llm/text/stand_ins.h"
#include "llm/text/utf8.h"

namespace llm {
namespace {

struct Named {
  const char *name, *pattern;  // name: of --pattern, null for those that only files have
};
constexpr Named kKnown[] = {
    {"gpt2", R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"},
    // In tiktoken's words `{1,3}+` and `$`. Oniguruma, which reads the tokenizer.json made of it, takes the one for a
    // repeated repetition, the other for any line's end.
    {"cl100k_base",
     R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++\z|\s*[\r\n]|\s+(?!\S)|\s)"},
    {"o200k_base",
     R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
    // Llama 3; Qwen 2 and 3
    {nullptr,
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
    {nullptr,
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
};

// Unicode's White_Space, which is what \s means to the other engines. PCRE2's has U+180E, too.
constexpr char kWhiteSpace[] = R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// A known pattern for PCRE2; null where it cannot compile to machine code here.
pcre2_code* compile_fast(const std::string& pattern) {
  std::string translated;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const std::string_view two = std::string_view(pattern).substr(i, 2);
    if (two == "\\s") {
      translated += in_class ? kWhiteSpace : concat("[", kWhiteSpace, "]");
    } else if (two == "\\S") {
      translated += concat("[^", kWhiteSpace, "]");
    } else {
      in_class = pattern[i] == '[' || (in_class && pattern[i] != ']');
      translated += pattern[i];
      continue;
    }
    ++i;
  }
  int error = 0;
  PCRE2_SIZE at = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                   PCRE2_UTF | PCRE2_UCP, &error, &at, nullptr);
  if (code && pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0) return code;
  pcre2_code_free(code);
  return nullptr;
}

// `[:punct:]` inside a set has all symbols in it since Oniguruma 6.9.9, which older ones must be told.
std::string with_newer_sets(const std::string& pattern) {
  std::string out;
  int depth = 0;  // of sets
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (depth > 0 && pattern.compare(i, 9, "[:punct:]") == 0) {
      out += "\\p{P}\\p{S}", i += 8;
    } else if (depth > 0 && pattern.compare(i, 10, "[:^punct:]") == 0) {
      out += "[^\\p{P}\\p{S}]", i += 9;
    } else if (const size_t end = pattern.find(":]", i);
               depth > 0 && pattern.compare(i, 2, "[:") == 0 && end != pattern.npos) {
      out.append(pattern, i, end + 2 - i), i = end + 1;
    } else if (pattern[i] == '\\' && i + 1 < pattern.size()) {
      out += pattern[i], out += pattern[++i];
    } else {
      depth += pattern[i] == '[' ? 1 : pattern[i] == ']' && depth > 0 ? -1 : 0;
      out += pattern[i];
    }
  }
  return out;
}

std::string message_of(int error, const OnigErrorInfo* info) {
  OnigUChar text[ONIG_MAX_ERROR_MESSAGE_LEN] = "";
  const int length =
      info && info->par ? onig_error_code_to_str(text, error, info) : onig_error_code_to_str(text, error);
  return {reinterpret_cast<const char*>(text), static_cast<size_t>(std::max(0, length))};
}

const OnigUChar* bytes_of(std::string_view text) { return reinterpret_cast<const OnigUChar*>(text.data()); }

}  // namespace

std::string split_pattern_named(const std::string& name) {
  std::string known;
  for (const Named& n : kKnown) {
    if (!n.name) continue;
    if (name == n.name) return n.pattern;
    known += (known.empty() ? "" : ", ") + std::string(n.name);
  }
  fail_value("pattern", " \"", name, "\" is not known; known: ", known);
}

std::string literal_pattern(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    if (std::string_view("\\^$.[]|()?*+{}-&~#").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

SplitPattern::SplitPattern(const std::string& pattern, const std::string& where) : text_(pattern) {
  if (pattern.size() > 10'000) fail(where, ": a split pattern of ", pattern.size(), " bytes");
  static const bool initialized = [] {
    OnigEncoding utf8 = ONIG_ENCODING_UTF8;
    return onig_initialize(&utf8, 1) == ONIG_NORMAL;
  }();
  if (!initialized || utf8_prefix(pattern) != pattern.size()) fail(where, ": the split pattern is not UTF-8");
  OnigErrorInfo info{};
  regex_t* code = nullptr;
  const std::string read = with_newer_sets(pattern);
  const int error = onig_new(&code, bytes_of(read), bytes_of(read) + read.size(), ONIG_OPTION_NONE, ONIG_ENCODING_UTF8,
                             ONIG_SYNTAX_ONIGURUMA, &info);
  if (error != ONIG_NORMAL)
    fail(where, ": the split pattern is not a regular expression: ", message_of(error, &info), ": ", pattern);
  code_ = {code, onig_free};
  known_ = std::any_of(std::begin(kKnown), std::end(kKnown), [&](const Named& n) { return pattern == n.pattern; });
  if (known_) fast_ = {compile_fast(pattern), pcre2_code_free};
}

SplitPattern::Matcher::Matcher(const SplitPattern& pattern)
    : pattern_(&pattern),
      region_(onig_region_new()),
      fast_data_(pattern.fast_.get() ? pcre2_match_data_create(1, nullptr) : nullptr) {}

SplitPattern::Matcher::~Matcher() {
  if (region_) onig_region_free(static_cast<OnigRegion*>(region_), 1);
  pcre2_match_data_free(static_cast<pcre2_match_data*>(fast_data_));
}

SplitPattern::Matcher::Matcher(Matcher&& other) noexcept
    : pattern_(other.pattern_),
      region_(std::exchange(other.region_, nullptr)),
      fast_data_(std::exchange(other.fast_data_, nullptr)),
      room_(std::move(other.room_)) {}

void SplitPattern::Matcher::start(std::string_view text) {
  text_ = with_stand_ins(text, room_);
  at_ = 0;
  last_end_ = std::string_view::npos;
  fast_ = fast_data_ != nullptr;
}

// Like the iteration of the crate `onig`: a match without length counts, but not where the last match ended.
bool SplitPattern::Matcher::next(size_t& begin, size_t& end) {
  while (at_ <= text_.size() && search(at_, begin, end)) {
    if (begin == end && end == last_end_) {
      at_ += at_ < text_.size() ? utf8_length(text_.substr(at_)) : 1;
      continue;
    }
    at_ = last_end_ = end;
    return true;
  }
  at_ = text_.size() + 1;
  return false;
}

bool SplitPattern::Matcher::search(size_t from, size_t& begin, size_t& end) {
  if (fast_) {
    auto* data = static_cast<pcre2_match_data*>(fast_data_);
    const int found =
        pcre2_jit_match(static_cast<pcre2_code*>(pattern_->fast_.get()), reinterpret_cast<PCRE2_SPTR>(text_.data()),
                        text_.size(), from, PCRE2_NO_UTF_CHECK, data, nullptr);
    if (found == PCRE2_ERROR_NOMATCH) return false;
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data);
    begin = range[0], end = range[1];
    if (found >= 0) return true;
    fast_ = false;  // its stack is too small for a very long run; Oniguruma's grows
  }
  auto* region = static_cast<OnigRegion*>(region_);
  const OnigUChar* text = bytes_of(text_);
  const OnigUChar* last = text + text_.size();
  const int found = onig_search(static_cast<regex_t*>(pattern_->code_.get()), text, last, text + from, last, region,
                                ONIG_OPTION_NONE);
  if (found == ONIG_MISMATCH) return false;
  if (found < 0) fail("the split pattern failed on a piece of text: ", message_of(found, nullptr));
  begin = static_cast<size_t>(region->beg[0]), end = static_cast<size_t>(region->end[0]);
  return true;
}

}  // namespace llm
