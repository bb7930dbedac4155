// Products of whole numbers for gemm_rounded_cpu.cpp. A vector has kLanes words, one for each column, and a unit of a block
// of 32 k is what one word holds: with weights in 8 bits pair p, k = p and 16 + p, in 16 bits each; with weights in 4 bits
// quad d, k = d, 8 + d, 16 + d and 24 + d, in 8 bits each, of weights from 0 to 15 and activations from -127 to 127. Eight
// products of a quad and its neighbours' add up to at most 30,480, so a block's sums stay in 16 bits.
#pragma once
#include "llm/device/panel_readers_cpu.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace llm::rounded {

using simd::IntVec;
using simd::kLanes;
using simd::Vec;
typedef int16_t Shorts __attribute__((vector_size(kLanes * 4)));

// sum + the two products of each lane: exact.
inline IntVec add_products(IntVec sum, Shorts a, Shorts b) {
#if defined(__AVX512VNNI__)
  return (IntVec)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
  return sum + (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  return sum + (IntVec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__) && !defined(__AVX__)
  return sum + (IntVec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const IntVec x = (IntVec)a, y = (IntVec)b;
  return sum + (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
#endif
}

// sum + the four products of each lane, of numbers without sign and numbers with sign: two in each half of the lane.
inline Shorts add_products_of_bytes(Shorts sum, Shorts without, Shorts with) {
#if defined(__AVX512BW__)
  return sum + (Shorts)_mm512_maddubs_epi16((__m512i)without, (__m512i)with);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  return sum + (Shorts)_mm256_maddubs_epi16((__m256i)without, (__m256i)with);
#else
  return sum + (without & 0xff) * (with << 8 >> 8) + (without >> 8 & 0xff) * (with >> 8);
#endif
}

// What the formats do, by their weights:
//   kUnits: of a block; unit<U>(numbers, half): the weights of one, where `numbers` is the block behind its scales
//   Sum, add(): what a block's products are added up in
//   total(sum, offset): the block's sum of each column; `offset` is that of the row's block
struct Numbers8 {
  static constexpr int64_t kBlockBytes = quantized_block_bytes(8), kUnits = 16;
  using Sum = IntVec;
  template <int U>
  static Shorts unit(const std::byte* numbers, int half) {
    const std::byte* const at = numbers + (U * 2 + half) * 2 * kLanes;
#if defined(__AVX512BW__)
    return (Shorts)_mm512_maskz_cvtepi8_epi16(~__mmask32{0}, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return (Shorts)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
#else
    typedef int8_t Bytes __attribute__((vector_size(2 * kLanes)));
    Bytes bytes;
    std::memcpy(&bytes, at, sizeof bytes);
    return __builtin_convertvector(bytes, Shorts);
#endif
  }
  static Sum add(Sum sum, Shorts weights, Shorts activations) { return add_products(sum, weights, activations); }
  static IntVec total(Sum sum, int32_t) { return sum; }
};
struct Numbers4 {
  static constexpr int64_t kBlockBytes = quantized_block_bytes(4), kUnits = 8;
  using Sum = Shorts;
  template <int U>
  static Shorts unit(const std::byte* numbers, int half) {
    const panels::Words w = panels::load_words(numbers + (U % 4 * 2 + half) * kLanes * 4);
    return (Shorts)(w >> (U / 4 * 4) & 0x0f0f0f0fu);
  }
  static Sum add(Sum sum, Shorts weights, Shorts activations) {
    return add_products_of_bytes(sum, weights, activations);
  }
  static IntVec total(Sum sum, int32_t offset) { return add_products(IntVec{} + offset, sum, Shorts{} + int16_t{1}); }
};

// A block of a panel in the form in which tiles read it.
template <class Numbers>
struct WideBlock {
  Shorts units[Numbers::kUnits][2];
  Vec scales[2];
};
template <class Numbers>
void widen(const std::byte* at, WideBlock<Numbers>& to) {
  panels::for_constants<Numbers::kUnits>([&](auto u) __attribute__((always_inline)) {
    for (int half = 0; half < 2; ++half) to.units[u][half] = Numbers::template unit<u>(at + 2 * kPanelColumns, half);
  });
  for (int half = 0; half < 2; ++half) to.scales[half] = panels::widen_halves(at + 2 * half * kLanes);
}

// A row of A: the words of the units of each block, its scale, and -8 times the sum of its numbers, which takes off the 8 by
// which weights in 4 bits are too large.
struct Row {
  const int32_t* units;
  const float* scales;
  const int32_t* offsets;
};
inline Shorts broadcast_unit(int32_t unit) { return (Shorts)(IntVec{} + unit); }

// sum + the sum of a block times both scales.
inline Vec add_block(Vec sum, IntVec block, Vec weight_scale, float scale) {
  return microkernel::multiply_add(__builtin_convertvector(block, Vec), weight_scale * scale, sum);
}

// Rounds a row of k values, to quads or pairs; what is not finite makes the scale NaN, and so the product.
void round_activations(const float* values, int64_t k, bool to_quads, int32_t* units, float* scales, int32_t* offsets);

}  // namespace llm::rounded
