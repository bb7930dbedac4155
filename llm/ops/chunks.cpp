#include "llm/ops/chunks.h"

#include "llm/base/error.h"

namespace llm {
namespace {

Chunks chunks_at(std::span<const int64_t> firsts, int64_t tokens) {
  const auto count = static_cast<int64_t>(firsts.size());
  if (count < 1 || count > 2 || tokens % count) fail(tokens, " tokens are not one or two chunks of equal length");
  const Chunks chunks{tokens / count, {firsts.front(), firsts.back()}, count};
  if (firsts[0] < 0 || (count == 2 && firsts[0] + chunks.length > firsts[1]))
    fail("the chunks of a sequence do not lie one behind the other");
  return chunks;
}

}  // namespace

Chunks chunks_of(const Attributes& attributes, int64_t tokens) {
  if (!attributes.has("firsts")) return {tokens, {0, 0}};
  return chunks_at(attributes.list("firsts"), tokens);
}

Chunks key_chunks_of(const Attributes& attributes) {
  const auto firsts = attributes.list("key_firsts");
  return chunks_at(firsts, attributes.integer("key_chunk") * static_cast<int64_t>(firsts.size()));
}

}  // namespace llm
