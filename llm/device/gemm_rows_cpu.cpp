// Each element of C is a dot product of a row of A and a row of B's transpose, both contiguous: the vectors of even
// number are added up in one vector, those of odd number in another one, and at the end the two and then their lanes are
// added. Two kernels do exactly that. For few rows B is read once, straight from memory, which takes all the time. For
// more rows a tile of these sums stays in registers; a block of B and the rows of A that it is multiplied with stay in
// the first-level cache, and the sums go through memory from one stage of k to the next, which changes no bit.
#include "llm/device/gemm_rows_cpu.h"

#include <algorithm>
#include <cstring>

#include "llm/base/error.h"
#include "llm/base/rounding.h"
#include "llm/base/simd.h"
#include "llm/device/microkernel_cpu.h"

namespace llm {
namespace {

using microkernel::RowPanels;
using simd::kLanes;
using simd::Vec;

constexpr int64_t kFewRows = 4;   // up to so many rows reading B from memory takes all the time
constexpr int64_t kAhead = 1024;  // floats: how far ahead B is prefetched for few rows

// A tile has kTileRows x kTileColumns sums of one of the two parities: 24 of 32 registers, or 12 of 16.
constexpr int kTileRows = microkernel::kRows >= 12 ? 6 : 3, kTileColumns = 4;
constexpr int64_t kColumns = kLanes == 8 ? 8 : 16;  // of a block of B
constexpr int64_t kDepth = 768;                     // floats of a stage of k: a block of B has 24 or 48 KiB
constexpr int64_t kRowsAtOnce = 64;                 // whose sums are kept, 128 KiB with the longest vectors
constexpr int64_t kChunk = 48;                      // columns that a thread takes at a time, whole blocks

// One column of C for all rows: reads one row of B's transpose from its first element to its last, so that the
// processor sees one stream.
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
void few_rows(const Gemm& g, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; ++j) dot_products<Rows>(g, j);
}

using FewRows = void (*)(const Gemm&, int64_t, int64_t);
constexpr FewRows kFewRowsKernels[] = {few_rows<1>, few_rows<2>, few_rows<3>, few_rows<4>};

// What is prefetched beside a tile: the same part of `columns` rows of B's transpose further on.
struct Ahead {
  const float* b = nullptr;
  int64_t columns = 0;
};

// The sums of a tile over a stage of k, of `depth` floats: those of even vectors, then those of odd ones. `sums`: that
// of row i, column j and parity p begins at ((2 i + p) kColumns + j) kLanes; with `first` it begins at zero.
template <int Rows, int Columns>
void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, float* sums,
              bool first, Ahead ahead) {
#pragma GCC unroll 1
  for (int parity = 0; parity < 2; ++parity, sums += kColumns * kLanes) {
    Vec sum[Rows][Columns];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) sum[i][j] = first ? Vec{} : simd::load(sums + (2 * i * kColumns + j) * kLanes);
    int64_t k = parity * kLanes;
    for (; k + kLanes <= depth; k += 2 * kLanes) {
      if (kLanes == 16 || parity == 0)  // a vector may be half a cache line
#pragma GCC unroll 1
        for (int64_t j = 0; j < ahead.columns; ++j) __builtin_prefetch(ahead.b + j * b_stride + k, 0, 2);
      Vec column[Columns];
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) column[j] = simd::load(b + j * b_stride + k);
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) {
        const Vec row = simd::load(a + i * a_stride + k);
#pragma GCC unroll 4
        for (int j = 0; j < Columns; ++j) sum[i][j] += row * column[j];
      }
    }
    if (k < depth) {
      const int64_t count = depth - k;
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) {
        const Vec row = simd::load_part(a + i * a_stride + k, count);
#pragma GCC unroll 4
        for (int j = 0; j < Columns; ++j) sum[i][j] += row * simd::load_part(b + j * b_stride + k, count);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) simd::store(sums + (2 * i * kColumns + j) * kLanes, sum[i][j]);
  }
}

using Kernel = decltype(&multiply<1, 1>);
template <int Columns>
constexpr Kernel kKernels[] = {multiply<1, Columns>, multiply<2, Columns>, multiply<3, Columns>,
                               multiply<4, Columns>, multiply<5, Columns>, multiply<6, Columns>};

// C's rows and columns from `row` and `column` on, at most kRowsAtOnce x kColumns of them.
class Block {
 public:
  static constexpr int64_t kFloats = 2 * kRowsAtOnce * kColumns * kLanes + kColumns * kDepth;

  Block(const Gemm& g, int64_t row, int64_t rows, int64_t column, int64_t columns, float* workspace)
      : g_(g),
        row_(row),
        column_(column),
        columns_(columns),
        rows_(rows),
        panels_(rows, kTileRows),
        sums_(workspace),
        packed_(workspace + 2 * kRowsAtOnce * kColumns * kLanes) {}

  void multiply_all() {
    const int64_t stages = std::max<int64_t>(1, ceil_div(g_.k, kDepth));
    const int64_t depth = round_up(std::max<int64_t>(1, ceil_div(g_.k, stages)), 2 * kLanes);
    for (int64_t k = 0; k < std::max<int64_t>(1, g_.k); k += depth) stage(k, std::min(depth, g_.k - k));
    finish();
  }

 private:
  void stage(int64_t k, int64_t depth) {
    const float* b = g_.b.data + column_ * g_.b.column_stride + k;
    int64_t b_stride = g_.b.column_stride;
    // The columns that follow these, which are read next, are dealt out to the tiles of this block.
    const int64_t following = std::clamp<int64_t>(g_.n - column_ - columns_, 0, columns_);
    const int64_t tiles = ceil_div(columns_, kTileColumns), calls = panels_.count * tiles;
    const float* next = b + columns_ * b_stride;
    const int64_t next_stride = b_stride;
    if (b_stride % 1024 == 0 && panels_.count > 2) {  // these rows share a set of the first-level cache
      for (int64_t j = 0; j < columns_; ++j)
        std::memcpy(packed_ + j * kDepth, b + j * b_stride, static_cast<size_t>(depth) * sizeof(float));
      b = packed_, b_stride = kDepth;
    }
    for (int64_t panel = 0, call = 0; panel < panels_.count; ++panel) {
      const int64_t first_row = panels_.begin(panel), height = panels_.begin(panel + 1) - first_row;
      const float* a = g_.a.data + (row_ + first_row) * g_.a.row_stride + k;
      for (int64_t j = 0; j < columns_; ++call) {
        const int64_t width = j + kTileColumns <= columns_ ? kTileColumns : 1;
        const int64_t from = std::min(following, ceil_div(call * following, calls)),
                      to = std::min(following, ceil_div((call + 1) * following, calls));
        const Ahead ahead = b_stride == next_stride ? Ahead{next + from * next_stride, to - from} : Ahead{};
        (width == 1 ? kKernels<1> : kKernels<kTileColumns>)[height - 1](
            a, g_.a.row_stride, b + j * b_stride, b_stride, depth, sums_ + (2 * first_row * kColumns + j) * kLanes,
            k == 0, ahead);
        j += width;
      }
    }
  }

  void finish() {
    for (int64_t i = 0; i < rows_; ++i) {
      const float* even = sums_ + 2 * i * kColumns * kLanes;
      const float* odd = even + kColumns * kLanes;
      for (int64_t j = 0; j < columns_; j += kLanes) {
        const int64_t count = std::min<int64_t>(kLanes, columns_ - j);
        Vec both[kLanes];
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const int64_t at = std::min(j + lane, columns_ - 1) * kLanes;
          both[lane] = simd::load(even + at) + simd::load(odd + at);
        }
        const Vec product = simd::reduce_add(both);
        const float* addend = g_.addend ? g_.addend + (row_ + i) * g_.addend_stride + column_ + j : nullptr;
        simd::store_part(g_.c + (row_ + i) * g_.c_stride + column_ + j,
                         addend ? simd::load_part(addend, count) + product : product, count);
      }
    }
  }

  const Gemm& g_;
  int64_t row_, column_, columns_, rows_;
  RowPanels panels_;
  float *sums_, *packed_;
};

// Columns [begin, end) of all rows.
void chunk(const Gemm& g, int64_t begin, int64_t end, float* workspace) {
  for (int64_t row = 0; row < g.m; row += kRowsAtOnce) {
    const int64_t rows = std::min(kRowsAtOnce, g.m - row);
    if (g.m <= kFewRows)
      kFewRowsKernels[g.m - 1](g, begin, end);
    else
      for (int64_t column = begin; column < end; column += kColumns)
        Block(g, row, rows, column, std::min(kColumns, end - column), workspace).multiply_all();
    if (g.epilogue.apply)
      g.epilogue.apply(g.epilogue.context, {g.c + row * g.c_stride + begin, g.c_stride, row, rows, begin, end - begin});
  }
}

}  // namespace

bool sums_by_rows(const Gemm& g) {
  const bool possible = g.a.column_stride == 1 && g.b.row_stride == 1 && !g.row_sums;
  if (g.row_invariant && (!possible || g.symmetric))
    fail("gemm: only a product of a row-major A and a transposed B has sums that do not depend on the rows");
  return g.row_invariant || (possible && g.m <= kMostRowsUnasked);
}

int64_t gemm_rows_workspace(int64_t m, int threads) { return m <= kFewRows ? 0 : threads * Block::kFloats; }

void gemm_rows(ThreadTeam& threads, const Gemm& g, bool alone, float* workspace) {
  if (alone) return chunk(g, 0, g.n, workspace);
  const int64_t width = g.m <= kFewRows ? std::max<int64_t>(16, g.n / (4 * threads.size()) / 16 * 16) : kChunk;
  threads.for_items(ceil_div(g.n, width), [&](int64_t item, int rank) {
    chunk(g, item * width, std::min(g.n, (item + 1) * width),
          g.m <= kFewRows ? nullptr : workspace + rank * Block::kFloats);
  });
}

}  // namespace llm
