// What `quantize` shares between the CPU and the GPU: the scale, and the size of the GPU's workspace. Plain C++.
#pragma once
#include <cstddef>
#include <cstdint>

#include "llm/base/fp8.h"

namespace llm {

// The GPU's workspace: the largest absolute value of each of at most kQuantizeParts parts of the matrix, a float each.
inline constexpr int kQuantizeParts = 1024;
inline size_t quantize_workspace_cuda() { return kQuantizeParts * sizeof(float); }

// For a matrix whose largest absolute value is `most`: scale_of is the factor by which 8-bit values are multiplied to
// give the matrix, most / (the largest 8-bit value), and inverse_scale its reciprocal. Both are 1 for a matrix of
// zeros, and for a matrix of numbers so small that the reciprocal would not be finite.
template <class T>
LLM_HOST_DEVICE inline float inverse_scale(float most) {
  const float inverse = Fp8Format<T>::kLargest / most;
  return most > 0 && inverse < 3e38f ? inverse : 1.0f;
}
template <class T>
LLM_HOST_DEVICE inline float scale_of(float most) {
  return inverse_scale<T>(most) == 1.0f ? 1.0f : most / Fp8Format<T>::kLargest;
}

}  // namespace llm
