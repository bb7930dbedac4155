// Hugging Face's tokenizer.json, read and written.
#pragma once
#include <string>

#include "llm/base/json.h"
#include "llm/text/tokenizer_parts.h"

namespace llm {

// Throws Error with `path` and the key for what is missing, malformed, or asks for something that is not supported.
TokenizerParts parse_tokenizer_json(const Json& document, const std::string& path);

// The tokenizer.json by which the library `tokenizers` gives the same ids as `parts`, which were trained or read from a file of
// another kind: BPE of bytes, or of characters with SentencePiece's blank before the text.
std::string tokenizer_json(const TokenizerParts& parts);

}  // namespace llm
