// The product of few rows of A and a transposed B, as in token-by-token decoding: each row of B's transpose is read
// once, straight from memory, and multiplied with all rows of A. Reading the weights from memory takes all the time.
#include "llm/device/gemm_few_rows_cpu.h"
#include <algorithm>

#include "llm/base/simd.h"

namespace llm {
namespace {

using simd::kLanes;
using simd::Vec;

constexpr int64_t kMostRows = 8;  // up to so many rows reading B from memory takes all the time
constexpr int64_t kAhead = 1024;  // floats: how far ahead B is prefetched

// One column of C for all rows: reads one row of B's transpose from its first element to its last, so that the
// processor sees one stream. Two chains of additions are faster than any memory.
template <int Rows>
void dot_products(const Gemm& g, int64_t column) {
  Vec sum[Rows][2] = {};
  const float* a = g.a.data;
  const float* b = g.b.data + column * g.b.column_stride;
  int64_t k = 0;
  for (; k + 2 * kLanes <= g.k; k += 2 * kLanes) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const Vec b_part = simd::load(b + k + j * kLanes);
      __builtin_prefetch(b + k + j * kLanes + kAhead);
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) sum[i][j] += simd::load(a + i * g.a.row_stride + k + j * kLanes) * b_part;
    }
  }
  for (int j = 0; k < g.k; k += kLanes, ++j) {
    const int64_t count = std::min<int64_t>(kLanes, g.k - k);
    const Vec b_part = simd::load_part(b + k, count);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) sum[i][j] += simd::load_part(a + i * g.a.row_stride + k, count) * b_part;
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
    const float product = simd::reduce_add(sum[i][0] + sum[i][1]);
    g.c[i * g.c_stride + column] = g.addend ? g.addend[i * g.addend_stride + column] + product : product;
  }
}

template <int Rows>
void columns_of(const Gemm& g, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; ++j) dot_products<Rows>(g, j);
  if (g.epilogue.apply) g.epilogue.apply(g.epilogue.context, {g.c + begin, g.c_stride, 0, Rows, begin, end - begin});
}

void columns_of_rows(const Gemm& g, int64_t begin, int64_t end) {
  switch (g.m) {
    case 1: return columns_of<1>(g, begin, end);
    case 2: return columns_of<2>(g, begin, end);
    case 3: return columns_of<3>(g, begin, end);
    case 4: return columns_of<4>(g, begin, end);
    case 5: return columns_of<5>(g, begin, end);
    case 6: return columns_of<6>(g, begin, end);
    case 7: return columns_of<7>(g, begin, end);
    default: return columns_of<8>(g, begin, end);
  }
}

}  // namespace

bool has_few_rows(const Gemm& g) {
  return g.m <= kMostRows && g.a.column_stride == 1 && g.b.row_stride == 1 && !g.row_sums;
}

void gemm_few_rows(ThreadTeam& threads, const Gemm& g, bool alone) {
  if (alone) return columns_of_rows(g, 0, g.n);
  const int64_t chunk = std::max<int64_t>(16, g.n / (4 * threads.size()) / 16 * 16);
  threads.for_blocks(g.n, chunk, [&](int64_t begin, int64_t end) { columns_of_rows(g, begin, end); });
}

}  // namespace llm
