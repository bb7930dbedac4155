// Tokens that are one or two chunks of neighbours of a sequence, all equally long: what a rank of context parallelism
// has. The attribute "firsts" lists the positions of the chunks' first tokens; without it the tokens begin at position
// 0.
#pragma once
#include "llm/base/bf16.h"
#include "llm/graph/graph.h"

namespace llm {

struct Chunks {
  int64_t length;     // tokens of a chunk
  int64_t firsts[2];  // positions
  int64_t count = 1;

  LLM_HOST_DEVICE int64_t position(int64_t token) const {
    return token < length ? firsts[0] + token : firsts[1] + token - length;
  }
  // The number of the token that is at a position; -1: none is.
  LLM_HOST_DEVICE int64_t token_at(int64_t position) const {
    for (int64_t i = 0; i < count; ++i)
      if (position >= firsts[i] && position < firsts[i] + length) return i * length + position - firsts[i];
    return -1;
  }
  // How many of the tokens lie before a position.
  LLM_HOST_DEVICE int64_t before(int64_t position) const {
    int64_t tokens = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t here = position - firsts[i];
      tokens += here < 0 ? 0 : here < length ? here : length;
    }
    return tokens;
  }
  // The position behind the last token.
  LLM_HOST_DEVICE int64_t end() const { return firsts[count - 1] + length; }
};

// Of `tokens` tokens. Throws Error where they are not chunks of equal length, one behind the other.
Chunks chunks_of(const Attributes& attributes, int64_t tokens);
// Of the keys that a node's queries may see: the attributes "key_firsts" and "key_chunk", the length of a chunk.
Chunks key_chunks_of(const Attributes& attributes);

// What a rank of context parallelism has of a sequence: of 2 `ranks` chunks number `rank` from the front and from the
// back, so that all ranks' queries see equally many keys (zigzag order).
inline Chunks zigzag_chunks(int64_t tokens, int rank, int ranks) {
  const int64_t length = tokens / (2 * ranks);
  return {length, {rank * length, tokens - (rank + 1) * length}, 2};
}

}  // namespace llm
