// The page at "/": one HTML file that talks to the API.
#pragma once
#include <string_view>

namespace llm {

std::string_view page();

}  // namespace llm
