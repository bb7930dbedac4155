// Characters that are newer than the tables of the regular expressions' engines (Debian 12's are Unicode 14.0).
#pragma once
#include <string>
#include <string_view>

namespace llm {

// `text` with an older character of the same kind and length in bytes for each that Unicode 15.0 to 16.0 added, so that
// `\p{L}` and its like match at the same places as with newer tables. Where there is none it is `text` itself, else a view
// of `room`, which is overwritten.
std::string_view with_stand_ins(std::string_view text, std::string& room);

}  // namespace llm
