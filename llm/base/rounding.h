// Whole numbers and addresses, rounded up.
#pragma once
#include <cstdint>

namespace llm {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// The first address at or after `p` at which a cache line of 64 bytes begins.
inline float* aligned(float* p) { return reinterpret_cast<float*>(round_up(reinterpret_cast<intptr_t>(p), 64)); }

}  // namespace llm
