// The tokenizer in a GGUF file: "gpt2" is BPE of bytes, "llama" SentencePiece's BPE with a score for each token. Files that
// this program writes also hold the tokenizer.json, which counts when they are read.
#pragma once
#include <memory>
#include <string>

#include "llm/model/gguf.h"
#include "llm/model/huggingface.h"
#include "llm/text/tokenizer.h"

namespace llm {

// Null where the file has none. Throws Error for a kind, or a way to cut text into words, that is not known, by its name.
std::unique_ptr<Tokenizer> tokenizer_of_gguf(const GgufContent& content);

// Adds the fields of a tokenizer.json for a model with `vocabulary` tokens; "": of none. Returns what is lost on the way, for
// people; empty: nothing.
std::string add_tokenizer(GgufFields& fields, const std::string& tokenizer_json, int64_t vocabulary,
                          const EndTokens& ends);

}  // namespace llm
