// IEEE half precision as values lie in memory: 1 sign bit, 5 bits of exponent (bias 15), 10 of fraction.
#pragma once
#include <bit>
#include <cmath>

#include "llm/base/bf16.h"

namespace llm {

inline float float_of_half(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16, exponent = half >> 10 & 31u, fraction = half & 1023u;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000u | fraction << 13);
  if (exponent > 0) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
  const float tiny = static_cast<float>(fraction) * 0x1p-24f;  // zero or subnormal: exact
  return sign ? -tiny : tiny;
}

// Rounds to the nearest half, ties to even; what is too large becomes an infinity, a NaN stays a NaN.
inline uint16_t nearest_half(float x) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520: halfway to the next power
  if (magnitude < 0x38800000u)                                                 // below 2^-14: a multiple of 2^-24
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(float_of_bits(magnitude) * 0x1p24f)));
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | (rounded - 0x38000000u) >> 13);
}

}  // namespace llm
