// The tokenizer that needs no asset: ids 0 .. 255 are the bytes themselves, 256 is <|endoftext|>.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "llm/base/json.h"
#include "llm/text/tokenizer.h"

namespace llm {

inline constexpr std::string_view kEndOfText = "<|endoftext|>";

// The character, in UTF-8, that stands for a byte in GPT-2's byte-level vocabularies: itself when it is printable in
// Latin-1, else the next free one from U+0100 on (bytes_to_unicode in GPT-2's encoder.py).
std::string byte_character(int byte);

std::unique_ptr<Tokenizer> make_bytes_tokenizer();

// Whether a parsed tokenizer.json gives the ids of the bytes tokenizer: the one that its json() wrote, or the same
// after another program saved it again.
bool is_bytes_tokenizer(const Json& document);

}  // namespace llm
