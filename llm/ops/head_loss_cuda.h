// head_loss on the GPU: how many rows' logits exist at a time, for the op's `infer` and the launcher alike. Plain C++.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "llm/base/shape.h"

namespace llm {

// Rows of a block at the most, and bytes that its logits may take unless the node's attribute "logits_bytes" says otherwise.
// Each block reads and writes the whole gradient of the weight, but from 4096 rows on an H100's products get no faster
// (2^14 x 50304 logits at once: 694 TFLOP/s; 2^12 rows at a time: 781).
inline constexpr int64_t kHeadRows = 4096, kHeadLogitsBytes = int64_t{2} << 30;

// Columns of the logits with those behind the vocabulary, so that each row starts at a multiple of 128 bytes. Where the weight
// (V, C) and its gradient have as many spare rows, the products take these in as well: of 50257 columns cuBLASLt made 95
// TFLOP/s on an H100, of 50304 it made 760.
inline int64_t padded_vocabulary(int64_t V) { return (V + 63) / 64 * 64; }

struct HeadBlocks {
  int64_t rows;    // of a block, the last one may have fewer
  int64_t stride;  // elements from one row of logits to the next: every row starts at a multiple of 128 bytes
};

inline HeadBlocks head_blocks_cuda(int64_t rows, int64_t V, DType dtype, int64_t limit = kHeadLogitsBytes) {
  constexpr int64_t kTile = 128;  // rows that a matrix product takes at a time
  const int64_t stride = padded_vocabulary(V);
  const int64_t fit = std::clamp<int64_t>(limit / (stride * static_cast<int64_t>(size_of(dtype))), 1, kHeadRows);
  if (rows <= fit) return {rows, stride};
  const int64_t blocks = (rows + fit - 1) / fit;  // of nearly equal height
  const int64_t even = (rows + blocks - 1) / blocks, tiles = (even + kTile - 1) / kTile * kTile;
  return {tiles <= fit ? tiles : even, stride};
}

// The logits (rows of a block, stride) of x's type.
inline size_t head_loss_workspace_cuda(int64_t rows, int64_t V, DType dtype, int64_t limit = kHeadLogitsBytes) {
  const HeadBlocks blocks = head_blocks_cuda(rows, V, dtype, limit);
  return static_cast<size_t>(blocks.rows * blocks.stride) * size_of(dtype);
}

}  // namespace llm
