// Vectors of floats from values in bf16 or whole numbers of 8 bits.
#pragma once
#include "llm/base/bf16.h"
#include "llm/base/simd.h"

namespace llm::simd {

inline Vec load(const bf16* p) {
#if defined(__AVX512F__)
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vec)((IntVec)_mm512_maskz_cvtepu16_epi32(kAll, narrow) << 16);
#elif defined(__AVX2__)
  const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16);
#else
  float wide[kLanes];
  for (int i = 0; i < kLanes; ++i) wide[i] = to_float(p[i]);
  return load(wide);
#endif
}
// The first `count` lanes; the others are zero, and their memory is not touched.
inline Vec load_part(const bf16* p, int64_t count) {
  float wide[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) wide[i] = to_float(p[i]);
  return load(wide);
}

inline Vec load(const int8_t* p) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm512_maskz_cvtepi32_ps(kAll, _mm512_maskz_cvtepi8_epi32(kAll, bytes));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#else
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  Bytes bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, IntVec), Vec);
#endif
}

}  // namespace llm::simd
