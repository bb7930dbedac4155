// Tokens that are found in text by their names, before anything else is done with it: <|endoftext|> and its like.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llm {

struct AddedToken {
  std::string name;
  int32_t id = 0;
  bool special = true;                           // false: it counts even where names of special tokens are plain text
  bool strip_left = false, strip_right = false;  // white space beside it belongs to it
};

class AddedTokens {
 public:
  AddedTokens() = default;
  explicit AddedTokens(std::vector<AddedToken> tokens);

  struct Found {
    size_t begin = 0, end = 0;  // the name, and white space that belongs to it
    const AddedToken* token = nullptr;
  };
  // The first one at or after `from`, the longest of those that begin there; token is null when there is none.
  Found find(std::string_view text, size_t from, bool special) const;
  // Whether a name reaches over the place `at`.
  bool straddles(std::string_view text, size_t at) const;

  const std::vector<AddedToken>& tokens() const { return tokens_; }
  // The id of that name, -1: there is none.
  int32_t id_of(std::string_view name) const;

 private:
  std::vector<AddedToken> tokens_;  // longest first
  std::array<bool, 256> begins_{};
  int only_first_ = -1;  // the byte that all names begin with; -1: several
};

}  // namespace llm
