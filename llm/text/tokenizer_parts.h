// A tokenizer put together from the parts that a tokenizer.json, a rank file or a training names. Text goes through them in
// this order: added tokens are found; what lies between is normalized; those added tokens are found that are looked for
// there; the rest is cut into pieces by one pre-tokenizer after the other; the model makes tokens of each piece.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "llm/text/added_tokens.h"
#include "llm/text/normalizer.h"
#include "llm/text/piece_model.h"
#include "llm/text/pre_tokenizer.h"
#include "llm/text/tokenizer.h"

namespace llm {

struct TokenizerParts {
  Vocabulary vocabulary;  // the model's: the tokens' bytes (byte level), or their names
  std::variant<BpeRules, WordPieceRules, WordLevelRules, UnigramRules> model;
  AddedTokens added;
  std::vector<int32_t> prefix, suffix;  // what a whole text is put between when special tokens count: <s>

  std::vector<Normalizer> normalizers;
  std::vector<PreTokenizer> pre_tokenizers;
  std::string blank = " ";  // how the model's tokens write a blank: "▁" in SentencePiece's vocabularies

  // From the name of a token to the bytes that it stands for, step by step. Names of added tokens are left as they are where
  // `keeps_added`.
  std::vector<std::function<void(std::string& token)>> decoders;
  bool keeps_added = true;
  bool strip_leading_blank = false;  // of a text that was decoded

  std::string json;  // the tokenizer.json; empty: is made when asked for
};

std::unique_ptr<Tokenizer> make_tokenizer(TokenizerParts parts);

// The first step of a SentencePiece tokenizer: a blank written as `blank`; `prefix`: one more in front of the text.
std::vector<Normalizer> sentencepiece_normalizers(const std::string& blank, bool prefix);
// A piece is what `pattern` matches, or what lies between. Throws Error with `where`, as SplitPattern does.
PreTokenizer isolated_split(const std::string& pattern, const std::string& where);
// The decoder that puts `to` in the place of each `from`.
std::function<void(std::string&)> replacing_decoder(const std::string& from, const std::string& to);
// The decoder that makes the byte 0x41 of the token <0x41>, and so on.
void decode_byte_token(std::string& token);

}  // namespace llm
