#include "llm/text/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "llm/base/error.h"

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

// Throws for what PCRE2 would take in another way than Oniguruma does.
std::string translate(const std::string& pattern, const std::string& where) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      if (next == 's') {
        out += in_class ? kWhiteSpace : concat("[", kWhiteSpace, "]");
      } else if (next == 'S' && !in_class) {
        out += concat("[^", kWhiteSpace, "]");
      } else {
        out += c;
        out += next;
        // The braces of \p{L} or \x{85} are no repetition.
        const size_t close = next == 'p' || next == 'P' || next == 'x' ? pattern.find('}', i) : pattern.npos;
        if (close != pattern.npos && pattern[i + 1] == '{') {
          out.append(pattern, i + 1, close - i);
          i = close;
        }
      }
      continue;
    }
    const bool nested = in_class && (c == '[' || pattern.compare(i, 2, "&&") == 0);
    if (nested) fail(where, ": the split pattern has a set of characters inside another, which is not supported");
    if (c == '[') {
      in_class = true;
      // "[]" and "[^]": the bracket right after is a character.
      out += c;
      if (pattern.compare(i + 1, 1, "^") == 0) out += pattern[++i];
      if (pattern.compare(i + 1, 1, "]") == 0) out += "\\]", ++i;
      continue;
    }
    if (c == ']') in_class = false;
    if (!in_class && c == '}' && pattern.compare(i + 1, 1, "+") == 0)
      fail(where, ": the split pattern repeats a repetition (\"}+\"), which is not supported");
    // Oniguruma's are those of lines.
    if (!in_class && (c == '^' || c == '$')) {
      out += c == '^' ? "(?m:^)" : "(?m:$)";
      continue;
    }
    out += c;
  }
  return out;
}

std::string message_of(int error) {
  unsigned char text[256] = "unknown error";
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

pcre2_code* code_of(void* code) { return static_cast<pcre2_code*>(code); }

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

SplitPattern::SplitPattern(const std::string& pattern, const std::string& where) : text_(pattern) {
  if (pattern.size() > 10'000) fail(where, ": a split pattern of ", pattern.size(), " bytes");
  const std::string translated = translate(pattern, where);
  int error = 0;
  PCRE2_SIZE at = 0;
  // Unlike \s, the other classes (\d, \w) are Unicode's in all three engines.
  code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                        PCRE2_UTF | PCRE2_UCP | PCRE2_DOLLAR_ENDONLY | PCRE2_NEVER_BACKSLASH_C, &error, &at, nullptr);
  if (!code_) fail(where, ": the split pattern is not a regular expression: ", message_of(error));
  jit_ = pcre2_jit_compile(code_of(code_), PCRE2_JIT_COMPLETE) == 0;  // where there is none for this CPU, it is slower
  for (const Named& n : kKnown) cuts_before_words_ |= pattern == n.pattern;
}

SplitPattern::~SplitPattern() { pcre2_code_free(code_of(code_)); }

SplitPattern::SplitPattern(SplitPattern&& other) noexcept
    : text_(std::move(other.text_)),
      code_(std::exchange(other.code_, nullptr)),
      cuts_before_words_(other.cuts_before_words_),
      jit_(other.jit_) {}

SplitPattern::Matcher::Matcher(const SplitPattern& pattern)
    : pattern_(&pattern),
      data_(pcre2_match_data_create_from_pattern(code_of(pattern.code_), nullptr)),
      context_(pcre2_match_context_create(nullptr)),
      stack_(pattern.jit_ ? pcre2_jit_stack_create(size_t{32} << 10, size_t{1} << 20, nullptr) : nullptr) {
  auto* context = static_cast<pcre2_match_context*>(context_);
  pcre2_set_match_limit(context, 10'000'000);
  if (stack_) pcre2_jit_stack_assign(context, nullptr, stack_);
}

SplitPattern::Matcher::~Matcher() {
  pcre2_match_data_free(static_cast<pcre2_match_data*>(data_));
  pcre2_match_context_free(static_cast<pcre2_match_context*>(context_));
  pcre2_jit_stack_free(static_cast<pcre2_jit_stack*>(stack_));
}

SplitPattern::Matcher::Matcher(Matcher&& other) noexcept
    : pattern_(other.pattern_),
      data_(std::exchange(other.data_, nullptr)),
      context_(std::exchange(other.context_, nullptr)),
      stack_(std::exchange(other.stack_, nullptr)) {}

bool SplitPattern::Matcher::next(std::string_view text, size_t from, size_t& begin, size_t& end) {
  auto* data = static_cast<pcre2_match_data*>(data_);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  while (from < text.size()) {
    const auto match = pattern_->jit_ ? pcre2_jit_match : pcre2_match;
    const int found = match(code_of(pattern_->code_), subject, text.size(), from, PCRE2_NO_UTF_CHECK, data,
                            static_cast<pcre2_match_context*>(context_));
    if (found == PCRE2_ERROR_NOMATCH) return false;
    if (found < 0) fail("the split pattern failed on a piece of text: ", message_of(found));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data);
    begin = range[0];
    end = range[1];
    // `\K` in a lookbehind could put it anywhere; an empty match is no piece.
    if (begin >= from && end > begin && end <= text.size()) return true;
    from = (end > from ? end : from) + 1;
    while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xC0) == 0x80) ++from;
  }
  return false;
}

}  // namespace llm
