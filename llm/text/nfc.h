// Unicode's Normalization Form C (Unicode Standard Annex 15): what Qwen's tokenizers do to text first.
#pragma once
#include <string>
#include <string_view>

namespace llm {

// Bytes that are no UTF-8 stay as they are.
std::string nfc(std::string_view text);

}  // namespace llm
