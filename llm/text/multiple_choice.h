// Multiple-choice tasks from a file of JSON lines in HellaSwag's format (Zellers et al. 2019): of each line "ctx", "endings"
// and "label" are read.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llm {

struct Choice {
  std::string context;
  std::vector<std::string> endings;  // two or more
  int64_t label = 0;                 // the right one
};

// Throws Error with `where` for a line that is none.
Choice parse_choice(std::string_view line, const std::string& where);

// All lines of a file, empty ones left out. Throws Error with the path and the line, or when there is none.
std::vector<Choice> read_choices(const std::string& path);

}  // namespace llm
