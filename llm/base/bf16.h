// bf16: the upper half of a float. It is how values lie in memory; arithmetic is done in float.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

// Marks functions that GPU kernels share with the CPU: nvcc compiles them for both.
#if defined(__CUDACC__)
#define LLM_HOST_DEVICE __host__ __device__
#else
#define LLM_HOST_DEVICE
#endif

namespace llm {

struct bf16 {
  uint16_t bits;
};

LLM_HOST_DEVICE inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
LLM_HOST_DEVICE inline float float_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

LLM_HOST_DEVICE inline float to_float(bf16 x) { return float_of_bits(uint32_t{x.bits} << 16); }
LLM_HOST_DEVICE inline float to_float(float x) { return x; }

// Rounds to the nearest bf16, ties to even; a NaN stays a NaN. On a GPU this is one instruction (llm/device/simt.h),
// which gives the same bits.
LLM_HOST_DEVICE inline bf16 nearest_bf16(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// Rounds up or down, with the probability that makes the mean exact (Gupta et al. 2015). `random` holds 16 random bits.
// An infinity stays one, a NaN a NaN.
LLM_HOST_DEVICE inline bf16 stochastic_bf16(float x, uint32_t random) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7f800000) == 0x7f800000) return nearest_bf16(x);
  return {static_cast<uint16_t>((bits + (random & 0xffff)) >> 16)};
}

}  // namespace llm
