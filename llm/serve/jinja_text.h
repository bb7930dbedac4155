// What filters and methods of strings both do.
#pragma once
#include <string>
#include <string_view>

#include "llm/serve/jinja_value.h"

namespace llm::jinja {

// Letters one by one, as Unicode pairs them (so "ß" stays, which Python's upper() makes two letters of).
std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string capitalized(std::string_view text);
// The first letter after each character that is no letter is a capital one, the others are small.
std::string python_title(std::string_view text);

// Without the characters, or, where that is null, white space, at its ends.
Value stripped(std::string_view text, const std::string* characters, bool before, bool behind, Budget& budget);
// Each `from`, or with `count` (not null, not negative) the first so many, becomes `to`.
Value replaced(const std::string& text, const std::string& from, const std::string& to, const Value* count,
               Budget& budget);

}  // namespace llm::jinja
