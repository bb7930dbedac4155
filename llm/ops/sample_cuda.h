// The workspace of `sample` on the GPU, for the op row's `workspace` and the launcher. Plain C++.
#pragma once
#include <cstddef>
#include <cstdint>

namespace llm {

// The number of tokens of a slice, which one block takes.
inline constexpr int64_t kSampleSlice = 1024;

inline int64_t sample_slices(int64_t vocabulary) { return (vocabulary + kSampleSlice - 1) / kSampleSlice; }

// Bytes: for each slice the sum of its weights (8), the largest logit, its token, and the first token whose logit is
// NaN or +inf (4 each); then the weights, (V) floats.
inline size_t sample_workspace_cuda(int64_t vocabulary) {
  return static_cast<size_t>(sample_slices(vocabulary)) * 20 + static_cast<size_t>(vocabulary) * 4;
}

}  // namespace llm
