// The product for few rows against a transposed B, as in token-by-token decoding: each row of B's transpose is read once,
// straight from memory, against all rows of A. What counts is the way of the weights from memory.
#include "llm/device/gemm_few_rows_cpu.h"
#include "llm/base/simd.h"

namespace llm {
namespace {

using simd::kLanes;
using simd::Vec;

constexpr int64_t kMostRows = 8;  // up to here nothing but B's way from memory counts
constexpr int64_t kChunk = 32;    // columns a claim

template <int Rows, int Columns>
void dot_products(const Gemm& g, int64_t column) {
  Vec sum[Rows][Columns] = {};
  const float* a = g.a.data;
  const float* b = g.b.data + column * g.b.column_stride;
  int64_t k = 0;
  for (; k + kLanes <= g.k; k += kLanes) {
    Vec b_part[Columns];
#pragma GCC unroll 8
    for (int j = 0; j < Columns; ++j) {
      b_part[j] = simd::load(b + j * g.b.column_stride + k);
      __builtin_prefetch(b + (Columns + j) * g.b.column_stride + k);  // of the next call
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const Vec a_part = simd::load(a + i * g.a.row_stride + k);
#pragma GCC unroll 8
      for (int j = 0; j < Columns; ++j) sum[i][j] += a_part * b_part[j];
    }
  }
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Columns; ++j) {
      Vec total = sum[i][j];
      if (k < g.k)
        total += simd::load_part(a + i * g.a.row_stride + k, g.k - k) *
                 simd::load_part(b + j * g.b.column_stride + k, g.k - k);
      const float product = simd::reduce_add(total);
      const int64_t at = i * g.c_stride + column + j;
      g.c[at] = g.addend ? g.addend[i * g.addend_stride + column + j] + product : product;
    }
}

template <int Rows>
void columns_of(const Gemm& g, int64_t begin, int64_t end) {
  constexpr int kStep = Rows == 1 ? 8 : Rows <= 4 ? 4 : 2;
  int64_t j = begin;
  for (; j + kStep <= end; j += kStep) dot_products<Rows, kStep>(g, j);
  for (; j < end; ++j) dot_products<Rows, 1>(g, j);
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
  threads.for_blocks(g.n, kChunk, [&](int64_t begin, int64_t end) { columns_of_rows(g, begin, end); });
}

}  // namespace llm
