// How the kernels of few rows read B's transpose: a row of weights comes in steps of kVectors vectors of floats, whatever
// the type it has in memory (llm/base/packed_rows.h). Each reader has
//   Reader(row, columns, first, count, scales): values [first, first + count) of a row of `columns` values; `first` is a
//     multiple of kGroupValues, `scales` has room for kScales floats for each block of the count, rounded up to groups
//   step(s): the s-th step, whose vector(v) is the floats of its v-th vector
// kPadded: the row goes on to a whole step, with zeros; else the last step may lack memory.
#pragma once
#include <cstddef>

#include "llm/base/bf16.h"
#include "llm/base/fp16.h"
#include "llm/base/packed_rows.h"

namespace llm::weight_rows {

using simd::kLanes;
using simd::Vec;

inline Vec load(const float* p) { return simd::load(p); }
inline Vec load_part(const float* p, int64_t count) { return simd::load_part(p, count); }

inline Vec load(const bf16* p) {
#if defined(__AVX512F__)
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vec)((simd::IntVec)_mm512_maskz_cvtepu16_epi32(simd::kAll, narrow) << 16);
#elif defined(__AVX2__)
  const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16);
#else
  float wide[kLanes];
  for (int i = 0; i < kLanes; ++i) wide[i] = to_float(p[i]);
  return simd::load(wide);
#endif
}
inline Vec load_part(const bf16* p, int64_t count) {
  float wide[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) wide[i] = to_float(p[i]);
  return simd::load(wide);
}

template <class T>
struct Plain {
  static constexpr int kVectors = 2, kScales = 0;
  static constexpr bool kPadded = false;
  const T* row;

  Plain(const std::byte* bytes, int64_t, int64_t first, int64_t, float*)
      : row(reinterpret_cast<const T*>(bytes) + first) {}
  struct Step {
    const T* at;
    Vec vector(int v) const { return load(at + v * kLanes); }
  };
  Step step(int64_t s) const { return {row + s * kVectors * kLanes}; }
  Vec part(int64_t at, int64_t count) const { return load_part(row + at, count); }
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
  static constexpr int kVectors = static_cast<int>(kBlockValues) / kLanes, kScales = 1;
  static constexpr bool kPadded = true;
  const std::byte* row;
  const float* scales;

  Int8(const std::byte* bytes, int64_t columns, int64_t first, int64_t count, float* room)
      : row(bytes + first), scales(room) {
    widen_scales(bytes + packed_scales_at(DType::int8, columns) + first / kBlockValues * 2,
                 ceil_div(count, kBlockValues), room);
  }
  struct Step {
    const std::byte* at;
    Vec scale;
    Vec vector(int v) const {
      const std::byte* from = at + v * kLanes;
#if defined(__AVX512F__)
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      return (Vec)_mm512_maskz_cvtepi32_ps(simd::kAll, _mm512_maskz_cvtepi8_epi32(simd::kAll, bytes)) * scale;
#elif defined(__AVX2__)
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
      return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)) * scale;
#else
      float wide[kLanes];
      for (int i = 0; i < kLanes; ++i) wide[i] = static_cast<float>(static_cast<int8_t>(from[i]));
      return simd::load(wide) * scale;
#endif
    }
  };
  Step step(int64_t s) const { return {row + s * kBlockValues, simd::broadcast(scales[s])}; }
};

// With AVX-512 a table of the 16 values of a block, which the processor looks up by four bits. Else, with the bits of the
// number left where they are in the word: 16^j number, times scale / 16^j, minus 8 scale, all of it exact.
struct Int4 {
  static constexpr int kVectors = 8, kScales = kLanes == 16 ? 1 : 5;
  static constexpr bool kPadded = true;
  const std::byte* row;
  float* scales;
  int64_t blocks;  // of the room

  Int4(const std::byte* bytes, int64_t columns, int64_t first, int64_t count, float* room)
      : row(bytes + first / 2), scales(room), blocks(round_up(count, kGroupValues) / kBlockValues) {
    widen_scales(bytes + packed_scales_at(DType::int4, columns) + first / kBlockValues * 2, blocks, scales);
    if constexpr (kLanes < 16) {
      blocks = round_up(blocks, 8);
      for (int64_t i = 0; i < blocks; i += kLanes) {
        Vec scale = simd::load(scales + i);
        simd::store(scales + 4 * blocks + i, -8.0f * scale);
#pragma GCC unroll 3
        for (int j = 1; j < 4; ++j) simd::store(scales + j * blocks + i, scale *= 1.0f / 16);
      }
    }
  }
  struct Step {
    simd::IntVec words;
    const float* scales;
    int64_t blocks;
    Vec vector(int v) const {
#if defined(__AVX512F__)
      const Vec table = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
      const Vec values = table * scales[v * kLanes / kBlockValues];
      return (Vec)_mm512_maskz_permutexvar_ps(simd::kAll, (__m512i)(words >> (4 * v)), (__m512)values);
#else
      const float* at = scales + v * kLanes / kBlockValues;
      const simd::IntVec half = v < 4 ? words : words >> 16;
      const int j = v % 4;
      return __builtin_convertvector(half & (15 << (4 * j)), Vec) * at[j * blocks] + at[4 * blocks];
#endif
    }
  };
  Step step(int64_t s) const {
    simd::IntVec words;
    std::memcpy(&words, row + s * static_cast<int64_t>(sizeof words), sizeof words);
    return {words, scales + s * kGroupValues / kBlockValues, blocks};
  }
};

// The room for scales that a reader of `count` values needs, in floats.
template <class Reader>
constexpr int64_t room_for_scales(int64_t count) {
  return Reader::kScales * (count / kBlockValues + 8 + kGroupValues / kBlockValues);
}

// Calls work with a null pointer to the reader of a type.
template <class Work>
void with_reader(DType dtype, Work&& work) {
  switch (dtype) {
    case DType::bf16: return work(static_cast<const Plain<bf16>*>(nullptr));
    case DType::int8: return work(static_cast<const Int8*>(nullptr));
    case DType::int4: return work(static_cast<const Int4*>(nullptr));
    default: return work(static_cast<const Plain<float>*>(nullptr));
  }
}

}  // namespace llm::weight_rows
