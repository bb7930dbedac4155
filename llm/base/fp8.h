// The two 8-bit formats of Micikevicius et al. 2022, "FP8 formats for deep learning": e4m3 (4 bits of exponent, 3 of
// mantissa, up to 448, no infinity) for weights and activations, e5m2 (up to 57344) for gradients, which need range
// more than precision.
#pragma once
#include "llm/base/bf16.h"

namespace llm {

struct e4m3 {
  uint8_t bits;
};
struct e5m2 {
  uint8_t bits;
};

template <class T>
struct Fp8Format;
template <>
struct Fp8Format<e4m3> {
  static constexpr int kMantissa = 3, kBias = 7;
  static constexpr float kLargest = 448;
  static constexpr uint8_t kNan = 0x7f;
};
template <>
struct Fp8Format<e5m2> {
  static constexpr int kMantissa = 2, kBias = 15;
  static constexpr float kLargest = 57344;
  static constexpr uint8_t kNan = 0x7f;
};

// Rounds to the nearest value, ties to even; a number that is too large becomes the largest one, a NaN stays a NaN.
template <class T>
LLM_HOST_DEVICE inline T nearest_fp8(float x) {
  using F = Fp8Format<T>;
  const uint32_t bits = bits_of(x), sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {static_cast<uint8_t>(sign | F::kNan)};
  const float size = float_of_bits(magnitude);
  if (size >= F::kLargest) {  // the bits of the largest number
    constexpr uint32_t largest = F::kMantissa == 3 ? 0x7e : 0x7b;
    return {static_cast<uint8_t>(sign | largest)};
  }
  // Below the smallest normal number all numbers lie one `ulp` apart: the value is rounded to a whole number of them.
  constexpr int kLeastExponent = 1 - F::kBias;
  const int exponent = static_cast<int>(magnitude >> 23) - 127;
  if (exponent < kLeastExponent) {
    const float ulp = float_of_bits(static_cast<uint32_t>(kLeastExponent - F::kMantissa + 127) << 23);
    const float scaled = size / ulp;                         // exact: a power of two
    const float rounded = scaled + 8388608.0f - 8388608.0f;  // 2^23: to a whole number, ties to even
    return {static_cast<uint8_t>(sign | static_cast<uint32_t>(rounded))};
  }
  constexpr int kDropped = 23 - F::kMantissa;
  const uint32_t rounded = magnitude + ((1u << (kDropped - 1)) - 1) + (magnitude >> kDropped & 1);
  const uint32_t shifted = (rounded >> kDropped) - (static_cast<uint32_t>(127 - F::kBias) << F::kMantissa);
  return {static_cast<uint8_t>(sign | shifted)};
}

template <class T>
LLM_HOST_DEVICE inline float fp8_to_float(T x) {
  using F = Fp8Format<T>;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x80) << 24, magnitude = x.bits & 0x7f;
  constexpr uint32_t kExponents = F::kMantissa == 3 ? 15 : 31;
  const uint32_t exponent = magnitude >> F::kMantissa, mantissa = magnitude & ((1u << F::kMantissa) - 1);
  if (exponent == kExponents && (F::kMantissa == 3 ? mantissa == 7 : mantissa != 0))
    return float_of_bits(sign | 0x7fc00000);
  if (F::kMantissa == 2 && exponent == kExponents) return float_of_bits(sign | 0x7f800000);
  if (exponent == 0) {
    const float ulp = float_of_bits(static_cast<uint32_t>(1 - F::kBias - F::kMantissa + 127) << 23);
    const float size = static_cast<float>(mantissa) * ulp;
    return sign ? -size : size;
  }
  return float_of_bits(sign | (exponent + 127 - F::kBias) << 23 | mantissa << (23 - F::kMantissa));
}
LLM_HOST_DEVICE inline float to_float(e4m3 x) { return fp8_to_float(x); }
LLM_HOST_DEVICE inline float to_float(e5m2 x) { return fp8_to_float(x); }

}  // namespace llm
