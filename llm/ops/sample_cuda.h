// What the row of `sample` and its launcher on the GPU share: which tokens are drawn, and the workspace. Plain C++.
#pragma once
#include <cstddef>
#include <cstdint>

#include "llm/graph/kernel.h"

namespace llm {

// The tokens that may be drawn are those below this number: of a padded vocabulary the ones that the tokenizer knows.
inline int64_t drawable_tokens(const KernelCall& call) {
  const int64_t limit = call.node.attributes.integer("limit", 0);
  return limit > 0 ? limit : call.in_shape(0).last();
}

// The number of tokens of a slice, which one block takes.
inline constexpr int64_t kSampleSlice = 1024;

inline int64_t sample_slices(int64_t vocabulary) { return (vocabulary + kSampleSlice - 1) / kSampleSlice; }

// Bytes, for each of `rows` rows: for each slice the sum of its weights (8), the largest logit, its token, and the first token whose logit is
// NaN or +inf (4 each); then the weights, (V) floats.
inline size_t sample_workspace_cuda(int64_t rows, int64_t vocabulary) {
  return static_cast<size_t>(rows) *
         (static_cast<size_t>(sample_slices(vocabulary)) * 20 + static_cast<size_t>(vocabulary) * 4);
}

}  // namespace llm
