// The regular expressions by which tokenizers cut text into pieces before they merge: PCRE2, made to mean what the
// engines of tiktoken (Rust's regex) and of tokenizers (Oniguruma) mean.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace llm {

// The pattern that --pattern names: gpt2 (Radford et al. 2019), cl100k_base, o200k_base (github.com/openai/tiktoken).
// Throws UsageError for another name.
std::string split_pattern_named(const std::string& name);

class SplitPattern {
 public:
  // Throws Error with `where` for what PCRE2 does not know or would understand in another way.
  SplitPattern(const std::string& pattern, const std::string& where);
  ~SplitPattern();
  SplitPattern(SplitPattern&&) noexcept;

  const std::string& text() const { return text_; }
  // Whether a text may be cut before a blank between two ASCII letters, whatever stands around them. So it is with the
  // patterns of GPT-2, cl100k_base, o200k_base, Llama 3 and Qwen: a piece neither has a letter before a blank nor looks
  // further than one character past its end. Of patterns that are not known it cannot be told: false.
  bool cuts_before_words() const { return cuts_before_words_; }

  // One thread's memory for matching.
  class Matcher {
   public:
    explicit Matcher(const SplitPattern& pattern);
    ~Matcher();
    Matcher(Matcher&& other) noexcept;
    // The next match in `text`, well-formed UTF-8, at or after `from`: [begin, end); false when there is none. Throws
    // Error where a pattern backtracks without end.
    bool next(std::string_view text, size_t from, size_t& begin, size_t& end);

   private:
    const SplitPattern* pattern_;
    void *data_ = nullptr, *context_ = nullptr, *stack_ = nullptr;
  };

 private:
  std::string text_;
  void* code_ = nullptr;
  bool cuts_before_words_ = false, jit_ = false;
};

}  // namespace llm
