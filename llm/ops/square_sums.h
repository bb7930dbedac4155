// The blocks of gradients whose squares are added together. Where a gradient is cut among ranks, it is cut between
// blocks, so that the sums are the same ones.
#pragma once
#include <cstdint>

namespace llm {

inline constexpr int64_t kGradientNormBlock = 16384;  // floats

// Of one tensor.
inline int64_t square_sum_blocks(int64_t elements) { return (elements + kGradientNormBlock - 1) / kGradientNormBlock; }

}  // namespace llm
