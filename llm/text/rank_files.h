// Vocabularies that come without a tokenizer.json.
#pragma once
#include <string>

#include "llm/text/tokenizer_parts.h"

namespace llm {

// GPT-2's: `merges` is its vocab.bpe (or merges.txt), `vocabulary` its encoder.json (or vocab.json).
TokenizerParts read_gpt2_files(const std::string& merges, const std::string& vocabulary);

// tiktoken's: a line is a token in base64, a blank, its rank. `pattern`: gpt2, cl100k_base or o200k_base, which also
// decides the special tokens; empty: what the file's name or its number of tokens tells, an Error where they do not.
TokenizerParts read_tiktoken(const std::string& path, const std::string& pattern);

// llama2.c's tokenizer.bin: the longest token's length, then of each token its score (float), length (int32) and bytes.
TokenizerParts read_llama2c_tokenizer(const std::string& path);

// SentencePiece's BPE, in which the higher a token's score the sooner it is made. Bytes are the tokens <0x00> to <0xFF>, a
// blank is "\u2581", one more of which is put in front of a text with `prefixed`; `unknown`: -1 where there is none.
TokenizerParts sentencepiece_bpe(std::vector<std::string> tokens, const std::vector<float>& scores,
                                 std::vector<AddedToken> added, std::vector<int32_t> prefix, int32_t unknown,
                                 bool prefixed, const std::string& where);

// The bytes that base64 stands for; false when it is none.
bool decode_base64(std::string_view text, std::string& bytes);

}  // namespace llm
