// Tokens that are found in text by their names: <|endoftext|> and its like.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "llm/text/bpe.h"

namespace llm {

struct AddedToken {
  std::string name;
  int32_t id = 0;
  bool special = true;                           // false: it counts even where names of special tokens are plain text
  bool strip_left = false, strip_right = false;  // white space beside it belongs to it
  bool normalized = false;                       // is looked for in the normalized text, by its normalized name
  bool single_word = false;                      // counts only where no character of a word is beside it
};

// Finds the tokens of a set: at each place the longest that begins there; the next one is looked for behind it.
class AddedTokenFinder {
 public:
  AddedTokenFinder() = default;
  // tokens[i] is found by names[i].
  AddedTokenFinder(std::vector<AddedToken> tokens, std::vector<std::string> names);
  AddedTokenFinder(AddedTokenFinder&&) = default;
  AddedTokenFinder& operator=(AddedTokenFinder&&) = default;

  bool empty() const { return names_.empty(); }
  // Hands the parts of `text` in order to take(part, token): a token with the white space that belongs to it, or, with
  // null, what lies between tokens. `special`: names of special tokens count.
  using Take = std::function<void(std::string_view, const AddedToken*)>;
  void split(std::string_view text, bool special, const Take& take) const;
  // Whether a name reaches over the place `at`.
  bool straddles(std::string_view text, size_t at) const;

 private:
  // The longest name at `at`, -1: none.
  int32_t match(std::string_view text, size_t at) const;
  // The first place at or after `from` where a name may begin.
  size_t next_candidate(std::string_view text, size_t from) const;

  std::vector<AddedToken> tokens_;
  std::vector<std::string> names_;
  TokenMap map_;                                  // from the names to places in `tokens_`
  std::array<std::vector<size_t>, 256> lengths_;  // of the names that begin with a byte, the longest first
  int only_first_ = -1;                           // the byte that all names begin with; -1: several
};

// All added tokens of a tokenizer.
class AddedTokens {
 public:
  AddedTokens() = default;
  // `normalize` makes of a name what the normalizers make of it.
  explicit AddedTokens(std::vector<AddedToken> tokens,
                       const std::function<std::string(const std::string&)>& normalize = {});

  const std::vector<AddedToken>& tokens() const { return tokens_; }
  const AddedTokenFinder& in_text() const { return in_text_; }  // look for these first, in the text as it is
  const AddedTokenFinder& in_normalized() const { return in_normalized_; }  // then for these, between them
  int32_t id_of(std::string_view name) const;                               // -1: there is none

 private:
  std::vector<AddedToken> tokens_;
  AddedTokenFinder in_text_, in_normalized_;
};

}  // namespace llm
