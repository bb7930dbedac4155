// What router_statistics adds up: the layout of its output, and of the blocks of tokens over which it sums, for the
// kernels and for the reader of the log.
#pragma once
#include <cstdint>

namespace llm {

inline constexpr int64_t kRouterSums = 3;     // behind the E counts: balance, log_sum_exp^2, entropy
inline constexpr int64_t kRouterBlock = 256;  // tokens
inline int64_t router_blocks(int64_t tokens) { return (tokens + kRouterBlock - 1) / kRouterBlock; }

}  // namespace llm
