// What the norms' CPU kernels share: a row forward and backward, the optional residual addition in front, the blocks
// over which a weight's gradient is summed, and the row sums. kCentered: LayerNorm's; else RMSNorm's, which has neither
// mean nor bias.
//
// Inputs of both: x (.., C), weight (C), [bias (C)], [delta (.., C)]. With `delta` the op first adds it to x and gives the
// sum as its last output: the residual connection and the norm behind it in one pass.
#pragma once
#include <algorithm>
#include <cmath>

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

// sum = x + delta where there is a delta; gives the row to normalise. `bf16`: the sum is kept so, and what is normalised is
// what is kept: a stage of a pipeline that is sent the sum has the bits of a rank that makes it.
inline const float* add_residual(const float* x, const float* delta, float* sum, int64_t C, bool is_bf16) {
  if (!delta) return x;
  for_vectors(C, [&](int64_t c, auto lanes) { lanes.store(sum + c, lanes.load(x + c) + lanes.load(delta + c)); });
  for (int64_t c = 0; is_bf16 && c < C; ++c) sum[c] = to_float(nearest_bf16(sum[c]));
  return sum;
}

struct NormStatistics {
  float mean = 0, rstd = 0;
};

// A sum over a row of C values as their mean. (LayerNorm takes several and multiplies, for RMSNorm's one it is a
// division.)
template <bool kCentered>
inline float mean_of_row(simd::Vec sum, int64_t C) {
  const auto count = static_cast<float>(C);
  return kCentered ? simd::reduce_add(sum) * (1.0f / count) : simd::reduce_add(sum) / count;
}

// y = (x - mean) rstd weight + bias, of a row of C values.
template <bool kCentered>
inline NormStatistics norm_row(const float* x, const float* weight, const float* bias, float* y, int64_t C,
                               float epsilon) {
  NormStatistics of;
  if constexpr (kCentered) {
    simd::Vec sum{};
    for_vectors(C, [&](int64_t c, auto lanes) { sum += lanes.load(x + c); });
    of.mean = mean_of_row<kCentered>(sum, C);
  }
  const auto centered = [&](int64_t c, auto lanes) {
    if constexpr (kCentered)
      return lanes.load(x + c) - of.mean;
    else
      return lanes.load(x + c);
  };
  simd::Vec squares{};
  for_vectors(C, [&](int64_t c, auto lanes) {
    const simd::Vec d = lanes.keep(centered(c, lanes));
    squares += d * d;
  });
  of.rstd = 1.0f / std::sqrt(mean_of_row<kCentered>(squares, C) + epsilon);
  for_vectors(C, [&](int64_t c, auto lanes) {
    const simd::Vec normal = centered(c, lanes) * of.rstd;
    if constexpr (kCentered)
      lanes.store(y + c, normal * lanes.load(weight + c) + lanes.load(bias + c));
    else
      lanes.store(y + c, normal * lanes.load(weight + c));
  });
  return of;
}

// dx = rstd (g - mean(g) - n mean(g n)) (+ addend) with g = dy weight and n = (x - mean) rstd, of a row of C values;
// RMSNorm's has no mean(g). Adds dy n to d_weight (C) and dy to d_bias (C).
template <bool kCentered>
inline void norm_row_backward(const float* dy, const float* x, const float* weight, const NormStatistics& of,
                              const float* addend, float* dx, float* d_weight, float* d_bias, int64_t C) {
  const auto normal = [&](int64_t c, auto lanes) {
    if constexpr (kCentered)
      return (lanes.load(x + c) - of.mean) * of.rstd;
    else
      return lanes.load(x + c) * of.rstd;
  };
  simd::Vec sum_g{}, sum_gn{};
  for_vectors(C, [&](int64_t c, auto lanes) {
    const simd::Vec d = lanes.load(dy + c), n = normal(c, lanes), g = d * lanes.load(weight + c);
    sum_gn += g * n;
    lanes.store(d_weight + c, lanes.load(d_weight + c) + d * n);
    if constexpr (kCentered) {
      sum_g += g;
      lanes.store(d_bias + c, lanes.load(d_bias + c) + d);
    }
  });
  const float mean_g = mean_of_row<kCentered>(sum_g, C), mean_gn = mean_of_row<kCentered>(sum_gn, C);
  const auto gradient = [&](int64_t c, auto lanes) {
    simd::Vec g = lanes.load(dy + c) * lanes.load(weight + c);
    if constexpr (kCentered) g = g - mean_g;
    return (g - normal(c, lanes) * mean_gn) * of.rstd;
  };
  if (addend)  // the same bits as when the gradients are added up afterwards
    for_vectors(C, [&](int64_t c, auto lanes) {
      lanes.store(dx + c, simd::rounded(gradient(c, lanes)) + lanes.load(addend + c));
    });
  else
    for_vectors(C, [&](int64_t c, auto lanes) { lanes.store(dx + c, gradient(c, lanes)); });
}

}  // namespace llm
