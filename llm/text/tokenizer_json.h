// Hugging Face's tokenizer.json of the BPE kind, read and written.
#pragma once
#include <string>

#include "llm/base/json.h"
#include "llm/text/bpe_tokenizer.h"

namespace llm {

// Throws Error with `path` and the key for what is missing, malformed, or asks for something that is not supported.
BpeParts parse_tokenizer_json(const Json& document, const std::string& path);

// The tokenizer.json by which the library `tokenizers` gives the same ids.
std::string tokenizer_json(const BpeParts& parts);

}  // namespace llm
