// JSON files read with errors that name the file. Only the forward declarations are included here: the library itself
// is slow to compile.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace llm {

// Throws Error: cannot be opened, not JSON, not UTF-8; "PATH: ..." with the byte where it is wrong.
nlohmann::json read_json(const std::string& path);

// The member `key` of `object`, a whole number in [smallest, 2^63), smallest >= 0. Throws Error "PATH: no ..."
// when it is not there.
int64_t integer_member(const nlohmann::json& object, const char* key, int64_t smallest, const std::string& path);

// As text; bytes in strings (file names) that are not UTF-8 become U+FFFD.
std::string json_text(const nlohmann::json& value);

}  // namespace llm
