// The workspace of `sample` on the GPU, for `infer` and the launcher alike. Plain C++.
#pragma once
#include <cstddef>
#include <cstdint>

namespace llm {

// A block looks at so many logits.
inline constexpr int64_t kSampleSlice = 1024;

inline int64_t sample_slices(int64_t vocabulary) { return (vocabulary + kSampleSlice - 1) / kSampleSlice; }

// Of each slice the sum of its weights (8 bytes), the largest logit, where it is, and the first that is not finite (4 each); the
// weights (V) floats.
inline size_t sample_workspace_cuda(int64_t vocabulary) {
  return static_cast<size_t>(sample_slices(vocabulary)) * 24 + static_cast<size_t>(vocabulary) * 4;
}

}  // namespace llm
