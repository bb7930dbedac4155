// Which tokens of each sequence the ops of token_range.cpp, and merge_attention, are about.
#pragma once
#include "llm/base/bf16.h"
#include "llm/graph/graph.h"

namespace llm {

// Tokens [first, first + tokens) of `all` tokens of each sequence; a token has `width` elements.
struct TokenRange {
  int64_t sequences, all, width;
  int64_t first, tokens;

  // The number among the tokens of the range, of all sequences, of token number `row` of all sequences; -1: it is not
  // in the range.
  LLM_HOST_DEVICE int64_t number(int64_t row) const {
    const int64_t t = row % all - first;
    return t < 0 || t >= tokens ? -1 : row / all * tokens + t;
  }
};
// Of take_tokens and add_tokens.
TokenRange taken_range(const Node& node, const Shape& x);
TokenRange added_range(const Node& node, const Shape& a, const Shape& b);

}  // namespace llm
