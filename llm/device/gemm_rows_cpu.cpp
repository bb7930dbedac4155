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
#include "llm/device/gemm_few_rows_cpu.h"
#include "llm/device/microkernel_cpu.h"
#include "llm/device/weight_rows_cpu.h"

namespace llm {
namespace {

using microkernel::RowPanels;
using simd::kLanes;
using simd::Vec;

// A tile has kTileRows x kTileColumns sums of one of the two parities: 24 of 32 registers, or 12 of 16.
constexpr int kTileRows = microkernel::kRows >= 12 ? 6 : 3, kTileColumns = 4;
constexpr int64_t kColumns = kLanes == 8 ? 8 : 16;  // of a block of B
constexpr int64_t kDepth = 768;                     // floats of a stage of k: a block of B has 24 or 48 KiB
constexpr int64_t kRowsAtOnce = 64;                 // whose sums are kept, 128 KiB with the longest vectors
constexpr int kStepsAtOnce = 4;                     // of a tile, between prefetches
constexpr int64_t kChunk = 48;                      // columns that a thread takes at a time, whole blocks

// What is prefetched beside a tile: a part of `rows` rows of B's transpose further on, some bytes of each at a time. (A core
// has few outstanding loads, and many prefetches at once would delay all others.)
struct Ahead {
  const std::byte* at = nullptr;
  int64_t rows = 0, stride = 0, bytes = 0;

  void fetch() {
    for (int64_t j = 0; j < rows; ++j)
      for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(at + j * stride + byte, 0, 2);
    at += bytes;
  }
};

// Of so many values of a row, without scales.
int64_t bytes_of_values(DType dtype, int64_t count) {
  return dtype == DType::int4 ? count / 2 : count * (dtype == DType::int8 ? 1 : dtype == DType::bf16 ? 2 : 4);
}

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
    const auto step = [&] {
      Vec row[Rows];
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) row[i] = simd::load(a + i * a_stride + k);
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) {
        const Vec column = simd::load(b + j * b_stride + k);
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i) sum[i][j] += row[i] * column;
      }
      k += 2 * kLanes;
    };
    while (k + (2 * kStepsAtOnce - 1) * kLanes <= depth) {
      ahead.fetch();
#pragma GCC unroll 4
      for (int i = 0; i < kStepsAtOnce; ++i) step();
    }
    while (k + kLanes <= depth) step();
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
    const int64_t depth = round_up(std::max<int64_t>(1, ceil_div(g_.k, stages)), kGroupValues);
    for (int64_t k = 0; k < std::max<int64_t>(1, g_.k); k += depth) stage(k, std::min(depth, g_.k - k));
    finish();
  }

 private:
  void stage(int64_t k, int64_t depth) {
    const float* b = g_.packed_b ? nullptr : g_.b.data + column_ * g_.b.column_stride + k;
    int64_t b_stride = g_.b.column_stride;
    const DType dtype = g_.packed_b ? g_.packed_dtype : DType::fp32;
    const std::byte* rows = g_.packed_b ? g_.packed_b : reinterpret_cast<const std::byte*>(g_.b.data);
    const int64_t bytes = g_.packed_b ? packed_row_bytes(dtype, g_.k) : b_stride * 4;
    const int64_t following = std::clamp<int64_t>(g_.n - column_ - columns_, 0, columns_);
    const std::byte* next = rows + (column_ + columns_) * bytes + bytes_of_values(dtype, k);
    if (g_.packed_b) {
      weight_rows::with_reader(dtype, [&](auto* type) {
        using Reader = std::remove_cv_t<std::remove_pointer_t<decltype(type)>>;
        for (int64_t j = 0; j < columns_; ++j)
          unpack<Reader>(rows + (column_ + j) * bytes, k, depth, packed_ + j * kDepth);
      });
      b = packed_, b_stride = kDepth;
    } else if (b_stride % 1024 == 0 && panels_.count > 2) {  // these rows share a set of the first-level cache
      for (int64_t j = 0; j < columns_; ++j)
        std::memcpy(packed_ + j * kDepth, b + j * b_stride, static_cast<size_t>(depth) * sizeof(float));
      b = packed_, b_stride = kDepth;
    }
    // The columns that follow these, which are read next, are dealt out to the tiles of this block.
    const int64_t calls = panels_.count * ceil_div(columns_, kTileColumns),
                  fetches = std::max<int64_t>(1, depth / (kStepsAtOnce * kLanes));
    for (int64_t panel = 0, call = 0; panel < panels_.count; ++panel) {
      const int64_t first_row = panels_.begin(panel), height = panels_.begin(panel + 1) - first_row;
      const float* a = g_.a.data + (row_ + first_row) * g_.a.row_stride + k;
      for (int64_t j = 0; j < columns_; ++call) {
        const int64_t width = j + kTileColumns <= columns_ ? kTileColumns : 1;
        const int64_t from = std::min(following, call * following / calls),
                      to = std::min(following, (call + 1) * following / calls);
        const Ahead ahead = {next + from * bytes, to - from, bytes, ceil_div(bytes_of_values(dtype, depth), fetches)};
        (width == 1 ? kKernels<1> : kKernels<kTileColumns>)[height - 1](
            a, g_.a.row_stride, b + j * b_stride, b_stride, depth, sums_ + (2 * first_row * kColumns + j) * kLanes,
            k == 0, ahead);
        j += width;
      }
    }
  }

  // `depth` values from number k on, and what fills up the last step.
  template <class Reader>
  void unpack(const std::byte* row, int64_t k, int64_t depth, float* to) const {
    constexpr int64_t kStep = Reader::kVectors * kLanes;
    float scales[weight_rows::room_for_scales<Reader>(kDepth) + 1];
    const Reader reader(row, g_.k, k, depth, scales);
    const int64_t steps = Reader::kPadded ? ceil_div(depth, kStep) : depth / kStep;
    for (int64_t s = 0; s < steps; ++s) {
      const auto step = reader.step(s);
#pragma GCC unroll 8
      for (int v = 0; v < Reader::kVectors; ++v) simd::store(to + s * kStep + v * kLanes, step.vector(v));
    }
    if constexpr (!Reader::kPadded)
      for (int64_t i = steps * kStep; i < depth; i += kLanes)
        simd::store(to + i, reader.part(i, std::min<int64_t>(kLanes, depth - i)));
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

// Columns [begin, end) of all rows. `filled`: A for few rows.
void chunk(const Gemm& g, const MatrixView& filled, int64_t begin, int64_t end, float* workspace) {
  for (int64_t row = 0; row < g.m; row += kRowsAtOnce) {
    const int64_t rows = std::min(kRowsAtOnce, g.m - row);
    if (g.m <= few_rows(g.packed_b))
      multiply_few_rows(g, filled, begin, end);
    else
      for (int64_t column = begin; column < end; column += kColumns)
        Block(g, row, rows, column, std::min(kColumns, end - column), workspace).multiply_all();
    if (g.epilogue.apply)
      g.epilogue.apply(g.epilogue.context, {g.c + row * g.c_stride + begin, g.c_stride, row, rows, begin, end - begin});
  }
}

}  // namespace

bool sums_by_rows(const Gemm& g) {
  const bool possible = g.a.column_stride == 1 && (g.packed_b || g.b.row_stride == 1) && !g.row_sums;
  if (g.row_invariant && (!possible || g.symmetric))
    fail("gemm: only a product of a row-major A and a transposed B has sums that do not depend on the rows");
  if (g.packed_b && !g.row_invariant) fail("gemm: packed rows are for products that do not depend on the rows");
  return g.row_invariant || (possible && g.m <= kMostRowsUnasked);
}

int64_t gemm_rows_workspace(int64_t m, int64_t k, int threads) {
  const int64_t floats = m > few_rows(false) ? threads * Block::kFloats : 0;
  return m <= few_rows(true) ? std::max(floats, few_rows_workspace(m, k)) : floats;
}

int64_t gemm_rows_workspace_up_to(int64_t m, int64_t k, int threads) {
  int64_t floats = gemm_rows_workspace(m, k, threads);
  for (int64_t rows = 1; rows <= std::min<int64_t>(m, few_rows(true)); ++rows)
    floats = std::max(floats, gemm_rows_workspace(rows, k, threads));
  return floats;
}

void gemm_rows(ThreadTeam& threads, const Gemm& g, bool alone, float* workspace) {
  const bool few = g.m <= few_rows(g.packed_b);
  const MatrixView filled = few ? fill_up_rows(g, workspace) : g.a;
  if (alone) return chunk(g, filled, 0, g.n, workspace);
  const int64_t width = few ? std::max<int64_t>(16, g.n / (4 * threads.size()) / 16 * 16) : kChunk;
  threads.for_items(ceil_div(g.n, width), [&](int64_t item, int rank) {
    chunk(g, filled, item * width, std::min(g.n, (item + 1) * width),
          few ? nullptr : workspace + rank * Block::kFloats);
  });
}

}  // namespace llm
