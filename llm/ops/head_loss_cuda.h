// head_loss on the GPU: how many rows of logits exist at a time, for the op row's `workspace` and the launcher. Plain
// C++.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "llm/base/shape.h"

namespace llm {

// The most rows of a block, and the most bytes of its logits unless the node has the attribute "logits_bytes". Each
// block reads and writes the whole gradient of the weight, but beyond 4096 rows the products are no faster (on an H100:
// 2^14 x 50304 logits at once 694 TFLOP/s; 2^12 rows at a time 781).
inline constexpr int64_t kHeadRows = 4096, kHeadLogitsBytes = int64_t{2} << 30;

// The vocabulary rounded up to a multiple of 64: the elements of a row of logits in memory, so that each row starts at
// a multiple of 128 bytes. Where the weight (V, C) and its gradient have spare rows, the products take these in as
// well: on an H100 cuBLASLt reached 95 TFLOP/s with 50257 columns and 760 with 50304.
inline int64_t padded_vocabulary(int64_t V) { return (V + 63) / 64 * 64; }

struct HeadBlocks {
  int64_t rows;    // of a block; the last block may have fewer
  int64_t stride;  // elements from one row of logits to the next
};

inline HeadBlocks head_blocks_cuda(int64_t rows, int64_t V, DType dtype, int64_t limit = kHeadLogitsBytes) {
  constexpr int64_t kTile = 128;  // rows of a tile of cuBLASLt's products
  const int64_t stride = padded_vocabulary(V);
  const int64_t fit = std::clamp<int64_t>(limit / (stride * static_cast<int64_t>(size_of(dtype))), 1, kHeadRows);
  if (rows <= fit) return {rows, stride};
  const int64_t blocks = (rows + fit - 1) / fit;  // of nearly equal height
  const int64_t even = (rows + blocks - 1) / blocks, tiles = (even + kTile - 1) / kTile * kTile;
  return {tiles <= fit ? tiles : even, stride};
}

// Bytes of the logits (rows of a block, stride), which have x's type.
inline size_t head_loss_workspace_cuda(int64_t rows, int64_t V, DType dtype, int64_t limit = kHeadLogitsBytes) {
  const HeadBlocks blocks = head_blocks_cuda(rows, V, dtype, limit);
  return static_cast<size_t>(blocks.rows * blocks.stride) * size_of(dtype);
}

}  // namespace llm
