// When a product on the GPU has few rows, as in token-by-token decoding, what it may take along, and how its sums are cut: plain
// C++, for the fusion pass and the kernel (llm/ops/linear_few_rows.cu) alike. All of it follows from the shape, and the cut
// from the weight's alone, so that a row has the same bits however many rows are beside it.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "llm/base/shape.h"

namespace llm {

inline constexpr int64_t kFewRows = 8;   // up to here nothing but the weight's way from memory counts
inline constexpr int kFewRowsWarps = 8;  // of a block

// What of x and of a norm's weight and bias a block keeps in shared memory, in front of 4 KiB for its sums.
inline constexpr size_t kFewRowsStaged = 44 << 10;

// Rows as the kernel is compiled for them: 1, 2, 4 or 8.
inline int64_t few_rows_rounded(int64_t rows) { return rows <= 2 ? rows : rows <= 4 ? 4 : 8; }

// Rows of k values, each rounded up to whole warps' packs of 16 bytes, and, `with_norm`, a norm's weight and bias (k).
inline size_t few_rows_staged_bytes(int64_t rows, int64_t k, DType dtype, bool with_norm) {
  return static_cast<size_t>(few_rows_rounded(rows) + (with_norm ? 2 : 0)) *
         static_cast<size_t>((k * static_cast<int64_t>(size_of(dtype)) + 511) / 512 * 512);
}

// Whether the product can begin with a norm of x (rows, k), whose rows then must fit a block's shared memory in packs.
inline bool few_rows_takes_norm(int64_t rows, int64_t k, DType dtype) {
  return rows <= kFewRows && k * static_cast<int64_t>(size_of(dtype)) % 16 == 0 &&
         few_rows_staged_bytes(rows, k, dtype, true) <= kFewRowsStaged;
}

// How many warps share a column's sum: as many as it takes that each SM has loads enough on their way.
inline int few_rows_splits(int64_t n, int64_t k, DType dtype) {
  constexpr int64_t kEnoughWarps = 2048;
  const int64_t pairs = (n + 1) / 2, chunks = (k * static_cast<int64_t>(size_of(dtype)) + 511) / 512;
  int splits = 1;
  while (splits < kFewRowsWarps && 2 * splits <= chunks && 2 * splits * pairs <= kEnoughWarps) splits *= 2;
  return splits;
}

}  // namespace llm
