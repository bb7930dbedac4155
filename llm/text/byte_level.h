// GPT-2's way to write bytes as printable characters (bytes_to_unicode in its encoder.py), for whole tokens.
#pragma once
#include <string>
#include <string_view>

#include "llm/text/bytes.h"

namespace llm {

std::string characters_of_bytes(std::string_view bytes);
// Whether all characters of `token` stand for bytes.
bool stands_for_bytes(const std::string& token);
// The other way. A token with a character that stands for no byte is one that was added later: it stays as it is.
std::string bytes_of_characters(const std::string& token);

}  // namespace llm
