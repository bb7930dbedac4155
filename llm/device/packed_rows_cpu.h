// How attention reads keys and values that lie as packed rows (llm/base/packed_rows.h): a row, whose values are whole
// steps, comes in steps of kVectors vectors of floats. Each reader has
//   Reader(row, columns, scales): a row of `columns` values; `scales` has room_for_scales() floats
//   step(s): the s-th step, whose vector(v) is the floats of its v-th vector
#pragma once
#include <cstddef>

#include "llm/base/fp16.h"
#include "llm/base/narrow_vectors.h"
#include "llm/base/packed_rows.h"

namespace llm::packed_rows {

using simd::kLanes;
using simd::Vec;

struct Bf16 {
  static constexpr int kVectors = 2;
  const bf16* row;

  Bf16(const std::byte* bytes, int64_t, float*) : row(reinterpret_cast<const bf16*>(bytes)) {}
  struct Step {
    const bf16* at;
    Vec vector(int v) const { return simd::load(at + v * kLanes); }
  };
  Step step(int64_t s) const { return {row + s * kVectors * kLanes}; }
};

// `to` has room for `count`, rounded up to eights.
inline void widen_scales(const std::byte* scales, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += 8) {
    uint16_t halves[8] = {};
    std::memcpy(halves, scales + 2 * i, i + 8 <= count ? sizeof halves : static_cast<size_t>(2 * (count - i)));
#if defined(__AVX2__) && defined(__F16C__)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves))));
#else
    for (int64_t j = 0; j < 8; ++j) to[i + j] = float_of_half(halves[j]);
#endif
  }
}

struct Int8 {
  static constexpr int kVectors = static_cast<int>(kBlockValues) / kLanes;
  const std::byte* row;
  const float* scales;

  Int8(const std::byte* bytes, int64_t columns, float* room) : row(bytes), scales(room) {
    widen_scales(bytes + packed_scales_at(columns), ceil_div(columns, kBlockValues), room);
  }
  struct Step {
    const std::byte* at;
    Vec scale;
    Vec vector(int v) const { return simd::load(reinterpret_cast<const int8_t*>(at) + v * kLanes) * scale; }
  };
  Step step(int64_t s) const { return {row + s * kBlockValues, simd::broadcast(scales[s])}; }
};

// Floats.
constexpr int64_t room_for_scales(int64_t columns) { return columns / kBlockValues + 8; }

}  // namespace llm::packed_rows
