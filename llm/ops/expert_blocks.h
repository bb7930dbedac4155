// How the CUDA kernels of the experts' ops cut their rows: for the workspaces and the kernels. Plain C++.
#pragma once
#include <cstdint>

namespace llm {

inline constexpr int64_t kOrderBlock = 256;    // choices that a block of expert_order sorts
inline constexpr int64_t kMostOrdered = 1024;  // experts, and the choices of none: one block adds them up
inline int64_t order_blocks_cuda(int64_t choices) { return (choices + kOrderBlock - 1) / kOrderBlock; }

// The row tiles of a grouped product: each expert begins a tile of its own, so there are at most so many, however the
// rows are spread.
inline int64_t most_tiles(int64_t rows, int64_t experts, int64_t tile) { return rows / tile + experts; }

}  // namespace llm
