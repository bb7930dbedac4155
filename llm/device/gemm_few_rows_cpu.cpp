// A row of B's transpose has the elements of one column of B side by side. A block of kLanes such rows and kLanes k is
// transposed in registers, after which each of its vectors has the elements of one k, as in a packed panel. Several blocks
// of rows are walked at once, so that their chains of additions overlap.
#include "llm/device/gemm_few_rows_cpu.h"

#include <algorithm>

#include "llm/base/rounding.h"
#include "llm/device/microkernel_cpu.h"

namespace llm {
namespace {

using simd::kLanes;
using simd::Vec;

// Columns [column, column + Blocks kLanes) of C, of which the first `columns` exist.
template <int Rows, int Blocks>
void multiply(const Gemm& g, int64_t column, int64_t columns) {
  const int64_t stride = g.b.column_stride, depth = std::max<int64_t>(gemm_stage_depth(g.k), 1);
  const float* const b = g.b.data + column * stride;
  const auto of_block = [&](int p) { return std::clamp<int64_t>(columns - p * kLanes, 0, kLanes); };
  for (int64_t begin = 0; begin < std::max<int64_t>(g.k, 1); begin += depth) {
    const int64_t end = std::min(g.k, begin + depth);
    Vec sum[Rows][Blocks] = {};
    // Adds `count` k, from `k` on, of the rows of a block of which `exist` are there.
    const auto add = [&](int p, int64_t k, int64_t count, int64_t exist) __attribute__((always_inline)) {
      Vec block[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const float* const row = b + (p * kLanes + i) * stride + k;
        block[i] = i >= exist ? Vec{} : count == kLanes ? simd::load(row) : simd::load_part(row, count);
      }
      simd::transpose(block);
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j)
        if (j < count)
#pragma GCC unroll 4
          for (int i = 0; i < Rows; ++i) {
            const float a = g.a.data[i * g.a.row_stride + k + j];
            sum[i][p] = microkernel::multiply_add(simd::broadcast(a), block[j], sum[i][p]);
          }
    };
    int64_t k = begin;
    if (columns == Blocks * kLanes)
      for (; k + kLanes <= end; k += kLanes)
#pragma GCC unroll 4
        for (int p = 0; p < Blocks; ++p) add(p, k, kLanes, kLanes);
    for (; k < end; k += kLanes)
#pragma GCC unroll 4
      for (int p = 0; p < Blocks; ++p) add(p, k, std::min<int64_t>(kLanes, end - k), of_block(p));
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int p = 0; p < Blocks; ++p) {
        const int64_t at = column + p * kLanes, count = of_block(p);
        float* const c = g.c + i * g.c_stride + at;
        const float* const addend = begin > 0 ? c : g.addend ? g.addend + i * g.addend_stride + at : nullptr;
        if (count > 0) simd::store_part(c, addend ? simd::load_part(addend, count) + sum[i][p] : sum[i][p], count);
      }
  }
}

// The rows of two blocks are as many streams as the processor reads ahead by itself: more blocks, and prefetches, made a
// Zen 3 slower.
constexpr int blocks_at_once(int rows) { return rows <= 2 ? 2 : 1; }

template <int Rows>
void multiply_columns(const Gemm& g, int64_t begin, int64_t end) {
  constexpr int64_t kWidth = blocks_at_once(Rows) * kLanes;
  for (int64_t column = begin; column < end; column += kWidth)
    multiply<Rows, blocks_at_once(Rows)>(g, column, std::min(kWidth, end - column));
}

}  // namespace

void gemm_few_rows(ThreadTeam& threads, const Gemm& g, bool alone) {
  static_assert(kMostFewRows == 3);
  const auto multiply_part = g.m == 1 ? multiply_columns<1> : g.m == 2 ? multiply_columns<2> : multiply_columns<3>;
  const int64_t unit = 2 * kLanes,
                width = alone ? round_up(g.n, unit) : std::max(unit, g.n / (4 * threads.size()) / unit * unit);
  const auto item = [&](int64_t i, int) {
    const int64_t begin = i * width, end = std::min(g.n, begin + width);
    multiply_part(g, begin, end);
    if (g.epilogue.apply) g.epilogue.apply(g.epilogue.context, {g.c + begin, g.c_stride, 0, g.m, begin, end - begin});
  };
  const int64_t items = ceil_div(g.n, width);
  if (!alone) return threads.for_items(items, item);
  for (int64_t i = 0; i < items; ++i) item(i, 0);
}

}  // namespace llm
