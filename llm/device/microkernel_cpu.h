// The inner loop of every matrix product on the CPU: a tile of C of up to kRows x kColumns in registers, one row of a
// panel of A broadcast against one row of a panel of B at each step of k.
//
// Every kernel here does the same multiply-adds in the same order for an element, whatever the height and width of its
// tile: sum = 0, sum += a(k) b(k) for k = 0, 1, ..., then C = sum or C = addend + sum. Callers rely on that for their
// bits.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "llm/base/simd.h"

namespace llm::microkernel {

using simd::kLanes;
using simd::Vec;

// As many accumulators as the registers hold besides two vectors of B and one of A: 28 of 32, or 12 of 16.
#if defined(__AVX512F__)
inline constexpr int kRows = 14;
#elif defined(__aarch64__)
inline constexpr int kRows = 12;
#else
inline constexpr int kRows = 6;
#endif
inline constexpr int kColumns = 2 * kLanes;

// One tile. A's element (i, k) is at a[i * row stride + k * a_step], the row stride being the kernel's own constant;
// B's row k at b + k * b_step. Only `columns` columns are written; B must be readable in the kernel's full width.
struct Tile {
  int64_t k;
  const float* a;
  int64_t a_step;
  const float* b;
  int64_t b_step;
  float* c;
  int64_t c_stride;
  const float* addend;  // with C's stride, may be C; nullptr for none
  int64_t columns;
};

template <int Rows, int Vectors, int RowStride>
void multiply(const Tile& t) {
  Vec sum[Rows][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) sum[i][j] = Vec{};

  const int64_t width = Vectors * kLanes;
  const float* to_fetch = t.addend ? t.addend : t.c;
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    __builtin_prefetch(to_fetch + i * t.c_stride, 1);
    __builtin_prefetch(to_fetch + i * t.c_stride + t.columns - 1, 1);
  }

  const float* a = t.a;
  const float* b = t.b;
  const int64_t a_step = t.a_step, b_step = t.b_step;
  for (int64_t k = t.k; k > 0; --k) {
    Vec b_row[Vectors];
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) b_row[j] = simd::load(b + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Vec a_element = simd::broadcast(a[i * RowStride]);
#pragma GCC unroll 2
      for (int j = 0; j < Vectors; ++j) sum[i][j] += a_element * b_row[j];
    }
    a += RowStride == 1 ? a_step : 1;
    b += b_step;
  }

  if (t.columns == width) {
    if (t.addend) {
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) {
          const int64_t at = i * t.c_stride + j * kLanes;
          simd::store(t.c + at, simd::load(t.addend + at) + sum[i][j]);
        }
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) simd::store(t.c + i * t.c_stride + j * kLanes, sum[i][j]);
    }
    return;
  }
  alignas(64) float edge[Rows][Vectors * kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) simd::store(&edge[i][j * kLanes], sum[i][j]);
  for (int64_t i = 0; i < Rows; ++i)
    for (int64_t j = 0; j < t.columns; ++j) {
      const int64_t at = i * t.c_stride + j;
      t.c[at] = t.addend ? t.addend[at] + edge[i][j] : edge[i][j];
    }
}

namespace detail {
using Kernel = void (*)(const Tile&);
template <int Vectors, int RowStride, int... I>
constexpr std::array<Kernel, sizeof...(I)> kernels(std::integer_sequence<int, I...>) {
  return {&multiply<I + 1, Vectors, RowStride>...};
}
template <int Vectors, int RowStride>
inline constexpr auto kTable = kernels<Vectors, RowStride>(std::make_integer_sequence<int, kRows>{});
}  // namespace detail

// A tile of `rows` <= kRows rows, of one or two vectors as its columns need. RowStride 1: the rows of A stand side by
// side at each k, `a_step` apart from k to k. Other values: A is row-major with that constant stride, and a_step is not
// used.
template <int RowStride = 1>
inline void multiply_tile(int64_t rows, const Tile& t) {
  if (t.columns > kLanes)
    detail::kTable<2, RowStride>[rows - 1](t);
  else
    detail::kTable<1, RowStride>[rows - 1](t);
}

// Cuts `count` rows into panels of nearly equal height: a ragged last panel would leave the pipelines half empty.
struct RowPanels {
  int64_t rows, count;
  explicit RowPanels(int64_t m) : rows(m), count((m + kRows - 1) / kRows) {}
  int64_t begin(int64_t panel) const { return panel * rows / count; }
};

}  // namespace llm::microkernel
