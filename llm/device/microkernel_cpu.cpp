#include "llm/device/microkernel_cpu.h"

#include <algorithm>
#include <array>
#include <utility>

namespace llm::microkernel {
namespace {

// One step of k: row(i) gives the element of row i of A.
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
    for (int j = 0; j < Vectors; ++j) sum[i][j] = multiply_add(a_element, b_row[j], sum[i][j]);
  }
}

// A ragged edge of C: only the last vector of a row is not full.
[[gnu::noinline]] void write_edge(const Tile& t, const float* sums, int rows, int vectors) {
  const int64_t last = t.columns - (vectors - 1) * kLanes;
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < vectors; ++j) {
      const int64_t at = i * t.c_stride + j * kLanes, count = j + 1 < vectors ? kLanes : last;
      const Vec sum = simd::load(sums + (i * vectors + j) * kLanes);
      const Vec old = t.addend ? simd::load_part(t.addend + i * t.addend_stride + j * kLanes, count) : Vec{};
      simd::store_part(t.c + at, t.addend ? old + sum : sum, count);
    }
}

enum class Extra { none, trickle, row_sums };  // what a kernel does besides multiplying

// RowMajor: t.a_step is 1; otherwise t.a_row is 1.
template <int Rows, int Vectors, bool RowMajor, bool Copy, Extra Kind>
void multiply(const Tile& t) {
  constexpr bool kTrickles = Kind == Extra::trickle, kSumsRows = Kind == Extra::row_sums;
  Vec sum[Rows][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) sum[i][j] = Vec{};

  const int64_t width = Vectors * kLanes;
  // C's tile, and the same place of the matrix that the epilogue uses, are prefetched in the last steps, two rows every
  // 16 steps: all at once would use up the outstanding loads of a core and delay those of A and B.
  constexpr int64_t kFetchingSteps = 8 * Rows + 48;
  const auto fetch_row = [&](int64_t i) __attribute__((always_inline)) {  // a call would spill the accumulators
    const int64_t begin = i * t.c_stride, end = begin + t.columns - 1;
    __builtin_prefetch(t.c + begin, 1);
    __builtin_prefetch(t.c + end, 1);
    if (t.beside) {
      __builtin_prefetch(t.beside + begin, 1);
      __builtin_prefetch(t.beside + end, 1);
    }
  };
  int64_t rows_fetched = Rows;
  if (!t.c_is_near) {
    if (t.k >= 8 * Rows)
      rows_fetched = 0;
    else
#pragma GCC unroll 1
      for (int i = 0; i < Rows; ++i) fetch_row(i);
  }
  [[maybe_unused]] const float* trickle = t.trickle;
  const float *b = t.b, *fetch_block = t.fetch ? t.fetch : t.b;
  float* b_copy = t.b_copy;
  const int64_t b_step = t.b_step, fetch_step = t.fetch ? t.fetch_step : 0, to_next_block = t.fetch ? t.fetch_block : 0;
  // For a row-major A, pointers to every fourth row: the rows between are one, two and three strides further.
  constexpr int kGroups = RowMajor ? (Rows + 3) / 4 : 1;
  const int64_t a_row = t.a_row, a_step = RowMajor ? 1 : t.a_step;
  const float* a[kGroups];
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) a[g] = t.a + 4 * g * a_row;
  // The row sums of a transposed A, whose elements of one k are contiguous: kRowVectors additions more for each k,
  // beside 2 Rows multiply-adds.
  constexpr int kRowVectors = (Rows + kLanes - 1) / kLanes;
  const auto lanes_of = [](int i) { return std::min(Rows - i * kLanes, kLanes); };
  const auto rows_of = [&](const float* from, int i) {
    return lanes_of(i) == kLanes ? simd::load(from) : simd::load_part(from, lanes_of(i));
  };
  [[maybe_unused]] Vec row_sums[kRowVectors] = {};
  for (int64_t left = t.k; left > 0; left -= 16) {
    const float* fetch = fetch_block;
    if (left <= kFetchingSteps && rows_fetched < Rows) {
      fetch_row(rows_fetched);
      if (rows_fetched + 1 < Rows) fetch_row(rows_fetched + 1);
      rows_fetched += 2;
    }
    if constexpr (kTrickles) {
#pragma GCC unroll 4
      for (int i = 0; i < kTrickle; ++i) __builtin_prefetch(trickle + i * t.trickle_step, 0, 2);
      trickle += kTrickle * t.trickle_step;
    }
    const auto step_once = [&]() __attribute__((always_inline)) {
      __builtin_prefetch(fetch, 0, 2);
      if constexpr (kSumsRows)
#pragma GCC unroll 4
        for (int i = 0; i < kRowVectors; ++i) row_sums[i] += rows_of(a[0] + i * kLanes, i);
      step<Rows, Vectors, Copy>(sum, b, b_copy, [&](int i) { return RowMajor ? a[i / 4][(i % 4) * a_row] : a[0][i]; });
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) a[g] += a_step;
      b += b_step;
      if constexpr (Copy) b_copy += kColumns;
      fetch += fetch_step;
    };
    if (left >= 16)
#pragma GCC unroll 4
      for (int k = 0; k < 16; ++k) step_once();
    else
#pragma GCC unroll 1
      for (int64_t k = left; k > 0; --k) step_once();
    fetch_block += to_next_block;
  }

  if constexpr (kSumsRows)
#pragma GCC unroll 4
    for (int i = 0; i < kRowVectors; ++i) {
      float* to = t.row_sums + i * kLanes;
      simd::store_part(to, t.add_to_row_sums ? rows_of(to, i) + row_sums[i] : row_sums[i], lanes_of(i));
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
  // Through memory, so that this rare case is not compiled for every height.
  float sums[Rows * Vectors * kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) simd::store(sums + (i * Vectors + j) * kLanes, sum[i][j]);
  write_edge(t, sums, Rows, Vectors);
}

using Kernel = void (*)(const Tile&);
template <int Vectors, bool RowMajor, bool Copy, Extra Kind, int... I>
constexpr std::array<Kernel, sizeof...(I)> kernels(std::integer_sequence<int, I...>) {
  return {&multiply<I + 1, Vectors, RowMajor, Copy, Kind>...};
}
template <int Vectors, bool RowMajor, bool Copy, Extra Kind = Extra::none>
constexpr auto kTable = kernels<Vectors, RowMajor, Copy, Kind>(std::make_integer_sequence<int, kRows>{});

template <bool RowMajor, Extra Kind = Extra::none>
Kernel kernel_of(size_t row, bool wide, bool copy) {
  if (copy) return wide ? kTable<2, RowMajor, true, Kind>[row] : kTable<1, RowMajor, true, Kind>[row];
  return wide ? kTable<2, RowMajor, false, Kind>[row] : kTable<1, RowMajor, false, Kind>[row];
}

}  // namespace

void multiply_tile(int64_t rows, const Tile& t) {
  const auto row = static_cast<size_t>(rows - 1);
  const bool wide = t.columns > kLanes, copy = t.b_copy;
  if (t.trickle && wide)
    return (copy ? kTable<2, true, true, Extra::trickle> : kTable<2, true, false, Extra::trickle>)[row](t);
  if (t.row_sums) return kernel_of<false, Extra::row_sums>(row, wide, copy)(t);
  (t.a_row == 1 ? kernel_of<false>(row, wide, copy) : kernel_of<true>(row, wide, copy))(t);
}

}  // namespace llm::microkernel
