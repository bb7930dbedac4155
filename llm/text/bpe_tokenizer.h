// A tokenizer of byte-pair encoding, put together from the parts that a tokenizer.json, a rank file or a training names.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "llm/text/added_tokens.h"
#include "llm/text/bpe.h"
#include "llm/text/split_pattern.h"
#include "llm/text/tokenizer.h"

namespace llm {

// What is done to the text between two added tokens, in this order.
struct Normalization {
  bool nfc = false;  // Unicode's canonical composition
  // A blank before text that has none ("if_missing"), or in any case ("always").
  enum class Prefix { none, if_missing, always } prefix = Prefix::none;
  bool prefix_first_only = false;  // only at the beginning of the whole text
  std::string blank = " ";  // what a blank becomes, the prefixed one included: "▁" in SentencePiece's vocabularies

  bool changes_text() const { return nfc || prefix != Prefix::none || blank != " "; }
};

// The pattern by which a Metaspace splits: a piece is a blank and what follows up to the next one.
std::string blank_split(const Normalization& normalization);

struct BpeParts {
  std::vector<std::string> tokens;  // their bytes, by id; those of SentencePiece with the blank written as `blank`
  std::vector<Merge> merges;
  AddedTokens added;
  std::vector<int32_t> prefix, suffix;  // what a whole text is put between when special tokens count: <s>

  Normalization normalization;
  std::vector<SplitPattern> splits;  // one after the other; matches and what lies between them are the pieces
  bool whole_pieces = false;         // a piece that is a token is that token, whatever the merges say

  // Byte level: a piece is bytes. Otherwise it is characters; one that is no token becomes the tokens <0x00> .. <0xFF> of
  // its bytes, where they are there, else `unknown`.
  bool byte_level = true;
  std::array<int32_t, 256> byte_ids{};  // -1: there is none
  int32_t unknown = -1;                 // -1: such text is an error
  bool fuse_unknown = false;

  bool strip_leading_blank = false;  // when decoding
  std::string json;                  // the tokenizer.json; empty: is made when asked for
  std::string where;                 // what it was read from, for messages
};

std::unique_ptr<Tokenizer> make_bpe_tokenizer(BpeParts parts);

}  // namespace llm
