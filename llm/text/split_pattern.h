// The regular expressions by which tokenizers cut text into pieces before they merge, read by Oniguruma, the engine of
// Hugging Face's tokenizers. The patterns of OpenAI's models, Llama 3 and Qwen are matched by PCRE2 instead, which means
// the same by them and is four times as fast.
#pragma once
#include <memory>
#include <string>
#include <string_view>

namespace llm {

// The pattern that --pattern names: gpt2 (Radford et al. 2019), cl100k_base, o200k_base (github.com/openai/tiktoken).
// Throws UsageError for another name.
std::string split_pattern_named(const std::string& name);
// The pattern that matches `text` and nothing else.
std::string literal_pattern(std::string_view text);

class SplitPattern {
 public:
  // Throws Error with `where` for what is no regular expression to Oniguruma.
  SplitPattern(const std::string& pattern, const std::string& where);

  const std::string& text() const { return text_; }
  // Whether a text may be cut before a blank between two ASCII letters, whatever stands around them. So it is with the
  // patterns of GPT-2, cl100k_base, o200k_base, Llama 3 and Qwen: a piece neither has a letter before a blank nor looks
  // further than one character past its end. Of patterns that are not known it cannot be told: false.
  bool cuts_before_words() const { return known_; }

  // One thread's memory for matching, and how far it has come in a text.
  class Matcher {
   public:
    explicit Matcher(const SplitPattern& pattern);
    ~Matcher();
    Matcher(Matcher&& other) noexcept;
    // Begins with `text`, well-formed UTF-8 that must stay.
    void start(std::string_view text);
    // The next match, [begin, end), begin = end where it has no length; false when there is none. Throws Error where a
    // pattern backtracks without end.
    bool next(size_t& begin, size_t& end);

   private:
    bool search(size_t from, size_t& begin, size_t& end);

    const SplitPattern* pattern_;
    void *region_ = nullptr, *fast_data_ = nullptr;
    std::string room_;       // the text with stand-ins, where it has such
    std::string_view text_;  // that is matched
    size_t at_ = 0, last_end_ = std::string_view::npos;
    bool fast_ = false;
  };

 private:
  std::string text_;
  std::shared_ptr<void> code_;  // Oniguruma's
  std::shared_ptr<void> fast_;  // PCRE2's, for the patterns that are known to mean the same to both
  bool known_ = false;
};

}  // namespace llm
