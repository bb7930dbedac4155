// A core has few outstanding loads and the processor reads ahead within a page only, so one row of B after the other does
// not reach the bandwidth of memory: several rows that lie far apart are read at once.
#include "llm/device/gemm_few_rows_cpu.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "llm/device/weight_rows_cpu.h"

namespace llm {
namespace {

using simd::kLanes;
using simd::Vec;

constexpr int64_t kStage = 8192;  // values of a row whose scales are kept at a time

// B's transpose, as bytes.
struct Rows {
  const std::byte* data;
  int64_t stride;
  explicit Rows(const Gemm& g)
      : data(g.packed_b ? g.packed_b : reinterpret_cast<const std::byte*>(g.b.data)),
        stride(g.packed_b ? packed_row_bytes(g.packed_dtype, g.k)
                          : g.b.column_stride * static_cast<int64_t>(sizeof(float))) {}
};

// Columns `column`, `column + apart`, ... of C for all rows.
template <class Reader, int Rows_, int Columns>
void dot_products(const Gemm& g, const MatrixView& view, const Rows& b, int64_t column, int64_t apart) {
  constexpr int64_t kStep = Reader::kVectors * kLanes;
  Vec sum[Rows_][Columns][2] = {};
  const float* a = view.data;
  for (int64_t first = 0; first < g.k; first += kStage, a += kStage) {
    const int64_t count = std::min(kStage, g.k - first);
    float scales[Columns][weight_rows::room_for_scales<Reader>(kStage) + 1];
    const auto reader = [&](int c) {
      return Reader(b.data + (column + c * apart) * b.stride, g.k, first, count, scales[c]);
    };
    const auto multiply = [&](const std::array<Reader, Columns>& readers) {
      const int64_t steps = Reader::kPadded ? ceil_div(count, kStep) : count / kStep;
      for (int64_t s = 0; s < steps; ++s) {
        const float* at = a + s * kStep;
#pragma GCC unroll 4
        for (int c = 0; c < Columns; ++c) {
          const auto step = readers[c].step(s);
#pragma GCC unroll 8
          for (int v = 0; v < Reader::kVectors; ++v) {
            const Vec weights = step.vector(v);
#pragma GCC unroll 4
            for (int i = 0; i < Rows_; ++i)
              sum[i][c][v % 2] += simd::load(at + i * view.row_stride + v * kLanes) * weights;
          }
        }
      }
      if constexpr (!Reader::kPadded)
        for (int64_t k = steps * kStep, j = 0; k < count; k += kLanes, ++j) {
          const int64_t lanes = std::min<int64_t>(kLanes, count - k);
          for (int c = 0; c < Columns; ++c) {
            const Vec weights = readers[c].part(k, lanes);
            for (int i = 0; i < Rows_; ++i)
              sum[i][c][j] += simd::load_part(a + i * view.row_stride + k, lanes) * weights;
          }
        }
    };
    if constexpr (Columns == 4)
      multiply({reader(0), reader(1), reader(2), reader(3)});
    else if constexpr (Columns == 2)
      multiply({reader(0), reader(1)});
    else
      multiply({reader(0)});
  }
  for (int i = 0; i < Rows_; ++i)
    for (int c = 0; c < Columns; ++c) {
      const float product = simd::reduce_add(sum[i][c][0] + sum[i][c][1]);
      const int64_t at = column + c * apart;
      g.c[i * g.c_stride + at] = g.addend ? g.addend[i * g.addend_stride + at] + product : product;
    }
}

// As many columns at once as the registers hold sums of two parities.
template <int Rows_>
constexpr int kColumnsAtOnce = Rows_ == 1     ? 4
                               : kLanes == 16 ? (Rows_ <= 3 ? 4 : 2)
                                              : (Rows_ <= 3 ? 2 : 1);

template <class Reader, int Rows_>
void multiply(const Gemm& g, const MatrixView& a, int64_t begin, int64_t end) {
  constexpr int kAtOnce = kColumnsAtOnce<Rows_>;
  const Rows b(g);
  const int64_t apart = (end - begin) / kAtOnce;
  for (int64_t j = begin; j < begin + apart; ++j) dot_products<Reader, Rows_, kAtOnce>(g, a, b, j, apart);
  for (int64_t j = begin + kAtOnce * apart; j < end; ++j) dot_products<Reader, Rows_, 1>(g, a, b, j, 0);
}

}  // namespace

int64_t few_rows_workspace(int64_t m, int64_t k) { return m * round_up(k, kGroupValues); }

MatrixView fill_up_rows(const Gemm& g, float* workspace) {
  if (!g.packed_b || !is_quantized(g.packed_dtype) || g.k % kGroupValues == 0) return g.a;
  const int64_t columns = round_up(g.k, kGroupValues);
  for (int64_t i = 0; i < g.m; ++i) {
    float* const row = workspace + i * columns;
    std::copy_n(g.a.data + i * g.a.row_stride, g.k, row);
    std::fill(row + g.k, row + columns, 0.0f);
  }
  return row_major(workspace, columns);
}

void multiply_few_rows(const Gemm& g, const MatrixView& a, int64_t begin, int64_t end) {
  weight_rows::with_reader(g.packed_b ? g.packed_dtype : DType::fp32, [&](auto* type) {
    using Reader = std::remove_cv_t<std::remove_pointer_t<decltype(type)>>;
    constexpr auto kKernels = []<int... I>(std::integer_sequence<int, I...>) {
      return std::array{&multiply<Reader, I + 1>...};
    }
    (std::make_integer_sequence<int, kMostFewRows>{});
    kKernels[static_cast<size_t>(g.m) - 1](g, a, begin, end);
  });
}

}  // namespace llm
