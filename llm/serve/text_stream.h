// From tokens, as they come, to text that can be handed on at once: whole characters, and nothing that a stop string
// may yet begin with.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llm {

// The text of `bytes` from `begin` on, as far as it is certain, appended to `text`: of bytes that are no UTF-8, each
// longest beginning of a character becomes one U+FFFD (as Python's errors="replace"). What may be the beginning of a
// character stays for later, unless `last`. Returns where what stays begins.
size_t append_text(std::string_view bytes, size_t begin, bool last, std::string& text);
std::string text_of_bytes(std::string_view bytes);

class TextStream {
 public:
  // `stops`: none of them empty, all UTF-8. The text ends before the first place where one is complete.
  explicit TextStream(std::vector<std::string> stops = {}) : stops_(std::move(stops)) {}

  // The bytes of the next token; those of a prompt that is echoed are not searched for stops. After the end they are
  // ignored.
  void push(std::string_view bytes, bool of_prompt = false);
  // No more tokens come: nothing is held back any longer.
  void finish();
  bool stopped() const { return stopped_; }

  // Text since the last call that can be handed on.
  std::string take();
  // How many of the tokens, from the first one on, are handed on: those that begin in the text handed on so far.
  size_t tokens();
  // The text's characters before the token.
  int64_t offset(size_t token) const { return tokens_[token].characters; }

 private:
  struct Token {
    size_t begin;        // in text_; the token begins at or behind it
    int64_t characters;  // in front of it
  };
  void search(size_t from);
  size_t certain() const;  // how much of text_ can be handed on

  std::vector<std::string> stops_;
  std::string bytes_;       // of tokens that are no text yet
  std::string text_;        // all of it
  size_t prompt_ = 0;       // how much of it is the prompt's
  size_t taken_ = 0;        // how much of it was handed on
  size_t searched_ = 0;     // how much of it holds no stop's beginning that is complete
  int64_t characters_ = 0;  // of text_
  bool stopped_ = false, finished_ = false;
  std::vector<Token> tokens_;
  size_t prompt_tokens_ = 0, handed_on_ = 0;  // of tokens_, the first ones
};

}  // namespace llm
