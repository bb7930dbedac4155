// What both back ends of `quantize` must agree on: the scale. Plain C++.
#pragma once
#include <cstddef>
#include <cstdint>

#include "llm/base/fp8.h"

namespace llm {

// The largest elements of parts of the matrix, one float each.
inline constexpr int kQuantizeParts = 1024;
inline size_t quantize_workspace_cuda() { return kQuantizeParts * sizeof(float); }

// What 8-bit values are multiplied by, for a matrix whose largest absolute value is `most`; and the other way round. A matrix
// of zeros has 1; so has one whose numbers are so small that the quotient would not be finite.
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
