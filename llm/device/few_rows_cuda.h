// Products of few rows on the GPU, as in token-by-token decoding: which norms may be fused into them, and how their
// sums are split. Plain C++, shared by the fusion pass and the kernel (llm/ops/linear_few_rows.cu). Everything follows
// from the shapes, and the split from the weight's shape alone, so that a row has the same bits however many rows are
// beside it.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "llm/base/shape.h"

namespace llm {

inline constexpr int64_t kFewRows = 8;   // up to so many rows reading the weight from memory takes all the time
inline constexpr int kFewRowsWarps = 8;  // of a block

// The most bytes of x and of a norm's weight and bias that a block keeps in shared memory, of whose 48 KiB 4 KiB are
// left for the block's sums.
inline constexpr size_t kFewRowsStaged = 44 << 10;

// The kernel is compiled for 1, 2, 4 and 8 rows; this is the smallest of these that is at least `rows`.
inline int64_t few_rows_rounded(int64_t rows) { return rows <= 2 ? rows : rows <= 4 ? 4 : 8; }

// Bytes of x (rows, k) and, `with_norm`, of a norm's weight and bias (k), each row rounded up to 512 bytes: a pack of
// 16 bytes for each lane of a warp.
inline size_t few_rows_staged_bytes(int64_t rows, int64_t k, DType dtype, bool with_norm) {
  return static_cast<size_t>(few_rows_rounded(rows) + (with_norm ? 2 : 0)) *
         static_cast<size_t>((k * static_cast<int64_t>(size_of(dtype)) + 511) / 512 * 512);
}

// Whether the kernel can begin with a norm of x (rows, k): the rows must consist of whole packs of 16 bytes and fit
// into a block's shared memory.
inline bool few_rows_takes_norm(int64_t rows, int64_t k, DType dtype) {
  return rows <= kFewRows && k * static_cast<int64_t>(size_of(dtype)) % 16 == 0 &&
         few_rows_staged_bytes(rows, k, dtype, true) <= kFewRowsStaged;
}

// Into groups of how many rows a row-invariant product of any number of rows is cut, of which each is a product of few
// rows: the most whose kernel can begin with a norm, where one row can.
inline int64_t few_rows_group(int64_t k, DType dtype) {
  if (!few_rows_takes_norm(1, k, dtype)) return kFewRows;
  int64_t rows = kFewRows;
  while (!few_rows_takes_norm(rows, k, dtype)) rows /= 2;
  return rows;
}

// How many warps split the sum of a column of y (rows, n): enough that all warps together keep the memory busy.
inline int few_rows_splits(int64_t n, int64_t k, DType dtype) {
  constexpr int64_t kEnoughWarps = 2048;
  const int64_t pairs = (n + 1) / 2, chunks = (k * static_cast<int64_t>(size_of(dtype)) + 511) / 512;
  int splits = 1;
  while (splits < kFewRowsWarps && 2 * splits <= chunks && 2 * splits * pairs <= kEnoughWarps) splits *= 2;
  return splits;
}

}  // namespace llm
