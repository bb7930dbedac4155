// What LayerNorm and RMSNorm share: the optional residual addition in front, the blocks over which a weight's gradient is
// summed, and the row sums.
//
// Inputs of both: x (.., C), weight (C), [bias (C)], [delta (.., C)]. With `delta` the op first adds it to x and gives the
// sum as its last output: the residual connection and the norm behind it in one pass.
#pragma once
#include <algorithm>

#include "llm/graph/kernel.h"
#include "llm/ops/rows.h"

namespace llm {

// Gradients of weights are sums over all rows. They are taken over at most this many blocks of rows, each in order, and
// then over the blocks in order, so the result does not depend on the number of threads.
inline constexpr int64_t kNormBlocks = 32;

inline int64_t norm_block_rows(int64_t rows) { return std::max<int64_t>(8, (rows + kNormBlocks - 1) / kNormBlocks); }

// Adds up `partial` (blocks, count) over the blocks into `out` (count), or on top of it.
inline void sum_blocks(ThreadTeam& threads, const float* partial, int64_t blocks, int64_t count, bool add, float* out) {
  threads.for_blocks(count, 1024, [&](int64_t begin, int64_t end) {
    for_vectors(end - begin, [&](int64_t i, auto lanes) {
      simd::Vec sum{};
      for (int64_t b = 0; b < blocks; ++b) sum += lanes.load(partial + b * count + begin + i);
      float* o = out + begin + i;
      lanes.store(o, add ? lanes.load(o) + sum : sum);
    });
  });
}

// sum (columns) of all rows of x, or on top of it; `partial` holds (kNormBlocks, columns).
inline void sum_rows(ThreadTeam& threads, const float* x, int64_t rows, int64_t columns, bool add, float* partial,
                     float* sum) {
  const int64_t block = norm_block_rows(rows), blocks = (rows + block - 1) / block;
  threads.for_blocks(rows, block, [&](int64_t begin, int64_t end) {
    float* part = partial + begin / block * columns;
    std::fill_n(part, columns, 0.0f);
    for (int64_t r = begin; r < end; ++r)
      for_vectors(columns, [&](int64_t i, auto lanes) {
        lanes.store(part + i, lanes.load(part + i) + lanes.load(x + r * columns + i));
      });
  });
  sum_blocks(threads, partial, blocks, columns, add, sum);
}

// y = x + delta where there is a delta; gives the row to normalise.
inline const float* add_residual(const float* x, const float* delta, float* sum, int64_t C) {
  if (!delta) return x;
  for_vectors(C, [&](int64_t c, auto lanes) { lanes.store(sum + c, lanes.load(x + c) + lanes.load(delta + c)); });
  return sum;
}

}  // namespace llm
