// How many bytes of workspace the CUDA kernels of these ops need: for the op row's `workspace`, and for the kernels,
// which lay the workspace out by the same numbers. Nothing here depends on the GPU: blocks are cut by the shapes alone,
// so that sums have the same order on every machine. Plain C++.
#pragma once
#include <algorithm>
#include <cstdint>

namespace llm {

// embedding_backward sorts its tokens in tiles of kSortTile, then sums runs of equal tokens in tiles of kEmbeddingTile
// occurrences. A run that crosses tiles leaves partial sums, at most two rows of C floats for each tile.
inline constexpr int64_t kSortTile = 1024, kEmbeddingTile = 32;

inline int64_t embedding_tiles_cuda(int64_t tokens) { return (tokens + kEmbeddingTile - 1) / kEmbeddingTile; }
// In front of the partial sums lie two lists of (token, position), 8 bytes an entry, between which the merges
// alternate.
inline int64_t embedding_keys_bytes_cuda(int64_t tokens) { return (2 * 8 * tokens + 15) / 16 * 16; }
inline int64_t embedding_backward_workspace_cuda(int64_t tokens, int64_t channels) {  // tokens: B T
  return embedding_keys_bytes_cuda(tokens) + embedding_tiles_cuda(tokens) * 2 * channels * 4;
}

// Gradients of norm weights are sums over at most kNormBlocksCuda blocks of at least kNormRowsCuda rows, then over the
// blocks. 264 are two blocks for each of an H100's 132 multiprocessors.
inline constexpr int64_t kNormBlocksCuda = 264, kNormRowsCuda = 16;

inline int64_t norm_block_rows_cuda(int64_t rows) {
  return std::max(kNormRowsCuda, (rows + kNormBlocksCuda - 1) / kNormBlocksCuda);
}
inline int64_t norm_blocks_cuda(int64_t rows) {
  const int64_t block = norm_block_rows_cuda(rows);
  return (rows + block - 1) / block;
}
// `sums`: how many of `columns` floats each are taken at the same time.
inline int64_t norm_backward_workspace_cuda(int64_t rows, int64_t columns, int64_t sums) {
  return norm_blocks_cuda(rows) * sums * columns * 4;
}

}  // namespace llm
