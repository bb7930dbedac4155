// From the text of a chat template to its tokens, with Jinja's rules for white space (as `transformers` sets them:
// trim_blocks and lstrip_blocks): a line with nothing but a tag leaves nothing behind.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llm::jinja {

struct Token {
  enum class Kind {
    text,  // what is printed as it is
    print_begin,
    print_end,  // {{ }}
    block_begin,
    block_end,  // {% %}
    name,
    integer,
    real,
    string,
    symbol,  // an operator or a bracket
    end
  };
  Kind kind;
  std::string text;  // of a string, what it stands for
  int line;          // from 1
};

// Throws Error that names the line. The template is UTF-8.
std::vector<Token> tokens_of(std::string_view source);

// What strip() of Python takes away, white space of Unicode: the bytes of the first character of `text` if it is one, else 0.
size_t blank_length(std::string_view text);
std::string_view without_blanks_before(std::string_view text);
std::string_view without_blanks_behind(std::string_view text);

}  // namespace llm::jinja
