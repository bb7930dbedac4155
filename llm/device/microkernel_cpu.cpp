#include "llm/device/microkernel_cpu.h"

#include <array>
#include <utility>

namespace llm::microkernel {
namespace {

// One step of k: rows of A at row(0), row(1), ...
template <int Rows, int Vectors, bool Copy, class Row>
inline __attribute__((always_inline)) void step(Vec (&sum)[Rows][Vectors], const float* b, float* b_copy, Row row) {
  Vec b_row[Vectors];
#pragma GCC unroll 2
  for (int j = 0; j < Vectors; ++j) {
    b_row[j] = simd::load(b + j * kLanes);
    if constexpr (Copy) simd::store(b_copy + j * kLanes, b_row[j]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    const Vec a_element = simd::broadcast(row(i));
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) sum[i][j] += a_element * b_row[j];
  }
}

// RowMajor: a_step is 1. Else a_row is.
template <int Rows, int Vectors, bool RowMajor, bool Copy, bool Trickle>
void multiply(const Tile& t) {
  Vec sum[Rows][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) sum[i][j] = Vec{};

  const int64_t width = Vectors * kLanes;
  if (!t.c_is_near)
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      __builtin_prefetch(t.c + i * t.c_stride, 1);
      __builtin_prefetch(t.c + i * t.c_stride + t.columns - 1, 1);
    }
  if (t.beside)
    for (int64_t i = 0; i < Rows; ++i) {
      __builtin_prefetch(t.beside + i * t.c_stride, 1);
      __builtin_prefetch(t.beside + i * t.c_stride + t.columns - 1, 1);
    }

  [[maybe_unused]] const float* trickle = t.trickle;
  const float *b = t.b, *fetch_block = t.fetch ? t.fetch : t.b;
  float* b_copy = t.b_copy;
  const int64_t b_step = t.b_step, fetch_step = t.fetch ? t.fetch_step : 0, to_next_block = t.fetch ? t.fetch_block : 0;
  // For a row-major A a pointer to every fourth row: the others are at its sums with one, two and three strides.
  constexpr int kGroups = RowMajor ? (Rows + 3) / 4 : 1;
  const int64_t a_row = t.a_row, a_step = RowMajor ? 1 : t.a_step;
  const float* a[kGroups];
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) a[g] = t.a + 4 * g * a_row;
  for (int64_t left = t.k; left > 0; left -= 16) {
    const float* fetch = fetch_block;
    if constexpr (Trickle) {
#pragma GCC unroll 4
      for (int i = 0; i < kTrickle; ++i) __builtin_prefetch(trickle + i * t.trickle_step, 0, 2);
      trickle += kTrickle * t.trickle_step;
    }
    for (int64_t k = left < 16 ? left : 16; k > 0; --k) {
      __builtin_prefetch(fetch, 0, 2);
      step<Rows, Vectors, Copy>(sum, b, b_copy, [&](int i) { return RowMajor ? a[i / 4][(i % 4) * a_row] : a[0][i]; });
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) a[g] += a_step;
      b += b_step;
      if constexpr (Copy) b_copy += kColumns;
      fetch += fetch_step;
    }
    fetch_block += to_next_block;
  }

  if (t.columns == width) {
    if (t.addend) {
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) {
          const int64_t at = i * t.c_stride + j * kLanes;
          simd::store(t.c + at, simd::load(t.addend + i * t.addend_stride + j * kLanes) + sum[i][j]);
        }
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) simd::store(t.c + i * t.c_stride + j * kLanes, sum[i][j]);
    }
    return;
  }
  // A ragged edge: only the last vector is not full.
  const int64_t last = t.columns - (Vectors - 1) * kLanes;
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) {
      const int64_t at = i * t.c_stride + j * kLanes, count = j + 1 < Vectors ? kLanes : last;
      const Vec old = t.addend ? simd::load_part(t.addend + i * t.addend_stride + j * kLanes, count) : Vec{};
      simd::store_part(t.c + at, t.addend ? old + sum[i][j] : sum[i][j], count);
    }
}

using Kernel = void (*)(const Tile&);
template <int Vectors, bool RowMajor, bool Copy, bool Trickle, int... I>
constexpr std::array<Kernel, sizeof...(I)> kernels(std::integer_sequence<int, I...>) {
  return {&multiply<I + 1, Vectors, RowMajor, Copy, Trickle>...};
}
template <int Vectors, bool RowMajor, bool Copy, bool Trickle = false>
constexpr auto kTable = kernels<Vectors, RowMajor, Copy, Trickle>(std::make_integer_sequence<int, kRows>{});

template <bool RowMajor>
Kernel kernel_of(size_t row, bool wide, bool copy) {
  if (copy) return wide ? kTable<2, RowMajor, true>[row] : kTable<1, RowMajor, true>[row];
  return wide ? kTable<2, RowMajor, false>[row] : kTable<1, RowMajor, false>[row];
}

}  // namespace

void multiply_tile(int64_t rows, const Tile& t) {
  const auto row = static_cast<size_t>(rows - 1);
  const bool wide = t.columns > kLanes, copy = t.b_copy;
  if (t.trickle && wide) return (copy ? kTable<2, true, true, true> : kTable<2, true, false, true>)[row](t);
  (t.a_row == 1 ? kernel_of<false>(row, wide, copy) : kernel_of<true>(row, wide, copy))(t);
}

}  // namespace llm::microkernel
