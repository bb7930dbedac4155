// What turns a piece of text into tokens: byte-pair encoding, WordPiece, Unigram, or whole words.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "llm/text/bpe.h"

namespace llm {

class PieceModel {
 public:
  virtual ~PieceModel() = default;
  // Appends the ids of `piece`, which is not empty. `room` is memory to be used again. Throws Error where there are none.
  virtual void encode(std::string_view piece, std::vector<int32_t>& room, std::vector<int32_t>& ids) const = 0;
};

// The names of a model's vocabulary: `tokens[id]`, empty where there is no such token, and further names for some ids.
struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<std::pair<std::string, int32_t>> more;
  std::string where;  // what it was read from, for messages
};

inline std::vector<std::string_view> views(const std::vector<std::string>& strings) {
  return {strings.begin(), strings.end()};
}

// Appends the tokens <0x00> .. <0xFF> of the bytes of `text` by their ids (-1: none); false, and nothing, where one is
// missing.
inline bool push_byte_tokens(const std::array<int32_t, 256>& byte_ids, std::string_view text,
                             std::vector<int32_t>& ids) {
  const size_t before = ids.size();
  for (const char c : text) {
    const int32_t id = byte_ids[static_cast<unsigned char>(c)];
    if (id < 0) return ids.resize(before), false;
    ids.push_back(id);
  }
  return true;
}

struct BpeRules {
  std::vector<Merge> merges;
  bool whole_pieces = false;  // a piece that is a token is that token, whatever the merges say

  // Byte level: a piece is bytes. Otherwise it is characters; one that is no token becomes the tokens <0x00> .. <0xFF> of
  // its bytes, where they are there, else `unknown`.
  bool byte_level = true;
  std::array<int32_t, 256> byte_ids{};  // -1: there is none
  int32_t unknown = -1;                 // -1: such text is left out
  bool fuse_unknown = false;            // several side by side are one
  std::string missing_unknown;          // the name of an unknown token that is no token: such text is an error

  // Stand in the tokens' names in front of each character but a piece's first, and behind its last.
  std::string continuing_prefix, word_suffix;
};
// Of this and the other models `vocabulary` and `rules` must stay.
std::unique_ptr<PieceModel> make_bpe_model(const Vocabulary& vocabulary, const BpeRules& rules);

// WordPiece (Schuster and Nakajima 2012, as BERT's): the longest token that the piece begins with, then the longest one of
// those that begin with `prefix` in what is left, and so on; where that leads nowhere the piece is `unknown`
// (-1: an error).
struct WordPieceRules {
  std::string prefix = "##";
  int32_t unknown = -1;
  size_t longest = 100;  // characters; longer pieces are `unknown`
};
std::unique_ptr<PieceModel> make_wordpiece_model(const Vocabulary& vocabulary, const WordPieceRules& rules);

// The piece is a token, or `unknown` (-1: an error).
struct WordLevelRules {
  int32_t unknown = -1;
};
std::unique_ptr<PieceModel> make_word_level_model(const Vocabulary& vocabulary, const WordLevelRules& rules);

// Unigram (Kudo 2018): of all ways to cut the piece into tokens the one with the highest sum of scores. Characters that no
// token covers are `unknown`, several side by side one, or the tokens of their bytes.
struct UnigramRules {
  std::vector<double> scores;           // of each token
  int32_t unknown = -1;                 // -1: such text is an error
  std::array<int32_t, 256> byte_ids{};  // <0x00> .. <0xFF>; -1: there is none
};
std::unique_ptr<PieceModel> make_unigram_model(const Vocabulary& vocabulary, const UnigramRules& rules);

}  // namespace llm
