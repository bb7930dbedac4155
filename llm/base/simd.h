// Vectors of floats in the widest registers of the instruction set that the file is compiled for, by the compiler's
// vector extensions: the same source is AVX-512, AVX2, SSE or NEON. Kernels need no other vector functions than these.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace llm::simd {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
inline constexpr const char* kInstructionSet = "AVX-512";
#elif defined(__AVX__)
inline constexpr int kLanes = 8;
inline constexpr const char* kInstructionSet = "AVX2";
#else
inline constexpr int kLanes = 4;
#if defined(__aarch64__)
inline constexpr const char* kInstructionSet = "NEON";
#else
inline constexpr const char* kInstructionSet = "SSE";
#endif
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec broadcast(float x) { return x - Vec{}; }

// v, rounded to float: else a product behind v may be joined with an addition that follows, and only where the compiler
// happens to see both, so that the same sum has other bits elsewhere.
inline Vec rounded(Vec v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#else
  asm("" : "+m"(v));
#endif
  return v;
}

#if defined(__AVX512F__)
// The mask of all lanes, for the zero-masking forms of instructions: of the plain forms GCC 12 warns that an operand is
// not set.
inline constexpr __mmask16 kAll = 0xffff;
#endif

// Loads or stores the first `count` lanes; the other lanes are loaded as zero, and their memory is not touched.
#if defined(__AVX512F__)
inline Vec load_part(const float* p, int64_t count) {
  return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
}
inline void store_part(float* p, Vec v, int64_t count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
}
#elif defined(__AVX2__)
inline __m256i first_lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec load_part(const float* p, int64_t count) { return (Vec)_mm256_maskload_ps(p, first_lanes(count)); }
inline void store_part(float* p, Vec v, int64_t count) { _mm256_maskstore_ps(p, first_lanes(count), (__m256)v); }
#else
inline Vec load_part(const float* p, int64_t count) {
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < std::min<int64_t>(count, kLanes); ++i) lanes[i] = p[i];
  return load(lanes);
}
inline void store_part(float* p, Vec v, int64_t count) {
  float lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < std::min<int64_t>(count, kLanes); ++i) p[i] = lanes[i];
}
#endif

// a > b ? a : b, and a < b ? a : b: b where either is NaN. (GCC compiles the plain form to a comparison and a blend.)
#if defined(__AVX512F__)
inline Vec max(Vec a, Vec b) { return (Vec)_mm512_maskz_max_ps(kAll, (__m512)a, (__m512)b); }
inline Vec min(Vec a, Vec b) { return (Vec)_mm512_maskz_min_ps(kAll, (__m512)a, (__m512)b); }
#elif defined(__AVX2__)
inline Vec max(Vec a, Vec b) { return (Vec)_mm256_max_ps((__m256)a, (__m256)b); }
inline Vec min(Vec a, Vec b) { return (Vec)_mm256_min_ps((__m256)a, (__m256)b); }
#else
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
#endif

namespace detail {

// Interleaves the two lower (or the two upper) lanes of each four of `a` and `b`: a0 b0 a1 b1.
template <bool Upper, int... I>
inline Vec interleave(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, ((I & ~3) + (Upper ? 2 : 0) + (I & 3) / 2 + (I & 1) * kLanes)...);
}

// Transposes each 4 x 4 block of four rows: shuffles within four lanes are the cheapest.
inline void transpose_quads(Vec* rows) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
  const Vec low = interleave<false>(rows[0], rows[2], lanes), high = interleave<true>(rows[0], rows[2], lanes);
  const Vec low2 = interleave<false>(rows[1], rows[3], lanes), high2 = interleave<true>(rows[1], rows[3], lanes);
  rows[0] = interleave<false>(low, low2, lanes), rows[1] = interleave<true>(low, low2, lanes);
  rows[2] = interleave<false>(high, high2, lanes), rows[3] = interleave<true>(high, high2, lanes);
}

// From each pair of blocks of `Step` lanes takes the low (or the high) one of `a` and of `b`, and puts the two side by
// side.
template <int Step, bool High, int... I>
inline Vec merge_blocks(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, ((I & Step) == 0 ? I + (High ? Step : 0) : kLanes + I - (High ? 0 : Step))...);
}

// Swaps the off-diagonal blocks of `Step` lanes, then those of twice as many lanes, and so on.
template <int Step>
inline void swap_blocks(Vec* rows) {
  if constexpr (Step < kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if ((i & Step) == 0) {
        const Vec a = rows[i], b = rows[i + Step];
        rows[i] = merge_blocks<Step, false>(a, b, std::make_integer_sequence<int, kLanes>{});
        rows[i + Step] = merge_blocks<Step, true>(a, b, std::make_integer_sequence<int, kLanes>{});
      }
    swap_blocks<2 * Step>(rows);
  }
}

}  // namespace detail

// Transposes a kLanes x kLanes block in registers.
inline void transpose(Vec (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) detail::transpose_quads(rows + i);
  detail::swap_blocks<4>(rows);
}

namespace detail {

// Lane i of the result, for i below `Half`, is lane i + Half of `v`; the other lanes hold nothing of use.
template <int Half, int... I>
inline Vec upper(Vec v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (I < Half ? I + Half : I)...);
}
template <int Half>
inline float fold_add(Vec v) {
  if constexpr (Half == 0)
    return v[0];
  else
    return fold_add<Half / 2>(v + upper<Half>(v, std::make_integer_sequence<int, kLanes>{}));
}
// Adds the two halves of each block of 2 Step lanes of rows [0, 2 Step), and puts the sums of rows i and i + Step side by
// side.
template <int Step>
inline void fold_rows(Vec* rows) {
  if constexpr (Step > 0) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
#pragma GCC unroll 8
    for (int i = 0; i < Step; ++i)
      rows[i] = merge_blocks<Step, false>(rows[i], rows[i + Step], lanes) +
                merge_blocks<Step, true>(rows[i], rows[i + Step], lanes);
    fold_rows<Step / 2>(rows);
  }
}
template <int Half>
inline float fold_max(Vec v) {
  if constexpr (Half == 0)
    return v[0];
  else
    return fold_max<Half / 2>(max(v, upper<Half>(v, std::make_integer_sequence<int, kLanes>{})));
}

}  // namespace detail

// Sums and maxima over the lanes, by halves: the order is fixed by the vector's width.
inline float reduce_add(Vec v) { return detail::fold_add<kLanes / 2>(v); }
// The sums of kLanes vectors, each in the order of the function above.
inline Vec reduce_add(Vec (&rows)[kLanes]) {
  detail::fold_rows<kLanes / 2>(rows);
  return rows[0];
}
inline float reduce_max(Vec v) { return detail::fold_max<kLanes / 2>(v); }

// 1 / x to about 1 unit in the last place.
inline Vec reciprocal(Vec x) {
#if defined(__AVX512F__)
  // A division would take as long as the rest of a sigmoid: 14 bits and one Newton step.
  const Vec guess = (Vec)_mm512_maskz_rcp14_ps(kAll, (__m512)x);
  return guess + guess * (1.0f - x * guess);
#else
  return 1.0f / x;
#endif
}

// p 2^n for a whole n. The AVX-512 form is right even where 2^n alone is not a normal number.
inline Vec times_power_of_two(Vec p, Vec n) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_scalef_ps(kAll, (__m512)p, (__m512)n);
#else
  const IntVec scale = (__builtin_convertvector(n, IntVec) + 127) << 23;
  Vec power;
  std::memcpy(&power, &scale, sizeof power);
  return p * power;
#endif
}

inline constexpr float kLog2E = 1.44269504088896341f;

// e^x to 0.7 units in the last place: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial of degree 6 for e^r whose first
// two coefficients are 1 (the others have the least largest relative error, 3.2e-9), and n added to the exponent. Below
// -87.3 the result is 0, above 88.37 it is e^88.37. A NaN stays a NaN.
inline Vec exp(Vec x) {
  const Vec clamped = min(broadcast(88.37f), x);  // in this order of operands a NaN passes through
#if defined(__AVX512F__)
  const Vec n = (Vec)_mm512_maskz_roundscale_ps(kAll, (__m512)(clamped * kLog2E), 0);
#else
  const Vec shifter = broadcast(12582912.0f);  // 1.5 * 2^23: rounds to nearest
  const Vec lifted = max(broadcast(-87.3f), clamped);
  const Vec n = (lifted * kLog2E + shifter) - shifter;
#endif
  Vec r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec p = broadcast(1.38138805e-3f);
  p = p * r + 8.36906303e-3f;
  p = p * r + 4.16684225e-2f;
  p = p * r + 1.66665182e-1f;
  p = p * r + 4.9999994e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return x < broadcast(-87.3f) ? Vec{} : times_power_of_two(p, n);
}

// 2^x to a relative error of 8e-8: a polynomial of degree 6 for the fraction (least largest relative error, 2.0e-9).
// Above 126 the result is 2^126, below -126 it is 2^-126 or less. A NaN stays a NaN.
inline Vec exp2(Vec x) {
  const Vec clamped = min(broadcast(126.0f), x);
#if defined(__AVX512F__)
  const Vec n = (Vec)_mm512_maskz_roundscale_ps(kAll, (__m512)clamped, 0);
  const Vec f = clamped - n;
#else
  const Vec lifted = max(broadcast(-126.0f), clamped), shifter = broadcast(12582912.0f);
  const Vec n = (lifted + shifter) - shifter;
  const Vec f = lifted - n;
#endif
  Vec p = broadcast(1.53533518e-4f);
  p = p * f + 1.33988878e-3f;
  p = p * f + 9.61843785e-3f;
  p = p * f + 5.55033237e-2f;
  p = p * f + 2.40226477e-1f;
  p = p * f + 6.93147182e-1f;
  p = p * f + 1.0f;
  return times_power_of_two(p, n);
}

// 1 / (1 + 2^x): a sigmoid for callers that have the factor -log2(e) among their own constants.
inline Vec sigmoid2(Vec x) { return reciprocal(1.0f + exp2(x)); }
inline Vec sigmoid(Vec x) { return sigmoid2(x * -kLog2E); }

// tanh by e^(2x), stable at both ends, to about 1e-7 absolute.
inline Vec tanh(Vec x) {
  const Vec e = exp(broadcast(2.0f) * min(broadcast(10.0f), max(broadcast(-10.0f), x)));
  return (e - broadcast(1.0f)) * reciprocal(e + broadcast(1.0f));
}

}  // namespace llm::simd
