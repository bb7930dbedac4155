#include "llm/device/microkernel_cpu.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace llm::microkernel {
namespace {

// sum += a b. With AVX2 the form that adds into the register of the sum: of the other forms, which the compiler mixes in, the
// sums move from register to register.
inline __attribute__((always_inline)) void add_product(Vec& sum, Vec a, Vec b) {
#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#else
  sum = multiply_add(a, b, sum);
#endif
}

// One step of k: row(i) gives the element of row i of A.
template <int Rows, int Vectors, bool Copy, class Row>
inline __attribute__((always_inline)) void step(Vec (&sum)[Rows][Vectors], const float* b, float* b_copy, Row row) {
  Vec b_row[Vectors];
#pragma GCC unroll 2
  for (int j = 0; j < Vectors; ++j) {
    // Held in a register: the compiler would else load the vector again for each row, three loads for two multiply-adds.
    b_row[j] = simd::rounded(simd::load(b + j * kLanes));
    if constexpr (Copy) simd::store(b_copy + j * kLanes, b_row[j]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    const Vec a_element = simd::broadcast(row(i));
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) add_product(sum[i][j], a_element, b_row[j]);
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

enum class Extra { none, trickle, row_sums, copy_rows, copy_rows_and_sum };  // what a kernel does besides multiplying
// A: the elements of a row lie side by side, or those of a column do, kRows floats from the next column's or any number.
enum class Layout { row_major, packed, transposed };
// B: its rows lie kColumns floats apart, or any number, or are copied on the way as well.
enum class Source { packed, in_place, copied };

// Distances that the compiler knows are parts of the instructions: 20 and not 24 of them a step with AVX2. Where another thread
// shares the core, and so its instruction decoder, each of them counts.
template <int Rows, int Vectors, Layout A, Source From, Extra Kind>
void multiply(const Tile& t) {
  constexpr bool kTrickles = Kind == Extra::trickle, kCopies = From == Source::copied,
                 kRowMajor = A == Layout::row_major,
                 kSumsRows = Kind == Extra::row_sums || Kind == Extra::copy_rows_and_sum,
                 kCopiesRows = Kind == Extra::copy_rows || Kind == Extra::copy_rows_and_sum;
  // Groups of 4 steps in one piece: the kernels that do nearly all of the work have more; with AVX-512 a step is long enough.
  constexpr int kGroupsATurn = kLanes < 16 && Vectors == 2 && From == Source::packed ? 4 : 1;
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
  const float *b = t.b, *fetch_block = t.fetch;
  float* b_copy = t.b_copy;
  [[maybe_unused]] float* a_copy = t.a_copy;
  const int64_t b_step = From == Source::packed ? kColumns : t.b_step, fetch_step = t.fetch_step;
  // For a row-major A, pointers to every fourth row: the rows between are one, two and three strides further.
  constexpr int kGroups = kRowMajor ? (Rows + 3) / 4 : 1;
  const int64_t a_row = t.a_row, a_step = kRowMajor ? 1 : A == Layout::packed ? kRows : t.a_step;
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
      if constexpr (kSumsRows)
#pragma GCC unroll 4
        for (int i = 0; i < kRowVectors; ++i) row_sums[i] += rows_of(a[0] + i * kLanes, i);
      if constexpr (kCopiesRows) std::memcpy(a_copy, a[0], kRowsMoved * sizeof(float)), a_copy += kRows;
      step<Rows, Vectors, kCopies>(sum, b, b_copy,
                                   [&](int i) { return kRowMajor ? a[i / 4][(i % 4) * a_row] : a[0][i]; });
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) a[g] += a_step;
      b += b_step;
      if constexpr (kCopies) b_copy += kColumns;
    };
    if (left >= 16) {
#pragma GCC unroll 1
      for (int turn = 0; turn < 4 / kGroupsATurn; ++turn)
#pragma GCC unroll 4
        for (int group = 0; group < kGroupsATurn; ++group) {
          if (fetch)
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k, fetch += fetch_step) __builtin_prefetch(fetch, 0, 2);
#pragma GCC unroll 4
          for (int k = 0; k < 4; ++k) step_once();
        }
    } else {
#pragma GCC unroll 1
      for (int64_t k = left; k > 0; --k) step_once();
    }
    if (fetch) fetch_block += t.fetch_block;
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
template <int Vectors, Layout A, Source From, Extra Kind, int... I>
constexpr std::array<Kernel, sizeof...(I)> kernels(std::integer_sequence<int, I...>) {
  return {&multiply<I + 1, Vectors, A, From, Kind>...};
}
template <int Vectors, Layout A, Source From, Extra Kind>
constexpr auto kTable = kernels<Vectors, A, From, Kind>(std::make_integer_sequence<int, kRows>{});

template <Layout A, Source From, Extra Kind>
Kernel kernel_of(int64_t rows, bool wide) {
  return (wide ? kTable<2, A, From, Kind> : kTable<1, A, From, Kind>)[static_cast<size_t>(rows - 1)];
}
template <Layout A, Extra Kind = Extra::none>
Kernel kernel_of(int64_t rows, bool wide, Source from) {
  if (from == Source::copied) return kernel_of<A, Source::copied, Kind>(rows, wide);
  if constexpr (Kind == Extra::none && A != Layout::packed)
    if (from == Source::in_place) return kernel_of<A, Source::in_place, Kind>(rows, wide);
  return kernel_of<A, Source::packed, Kind>(rows, wide);
}

}  // namespace

void multiply_tile(int64_t rows, const Tile& t) {
  using enum Layout;
  const bool wide = t.columns > kLanes;
  const Source from = t.b_copy ? Source::copied : t.b_step == kColumns ? Source::packed : Source::in_place;
  const Layout a = t.a_row != 1 ? row_major : t.a_step == kRows && from != Source::in_place ? packed : transposed;
  Kernel kernel;
  if (a == row_major)
    kernel = t.trickle && from != Source::in_place ? kernel_of<row_major, Extra::trickle>(rows, wide, from)
                                                   : kernel_of<row_major>(rows, wide, from);
  else if (t.a_copy)
    kernel = t.row_sums ? kernel_of<transposed, Extra::copy_rows_and_sum>(rows, wide, from)
                        : kernel_of<transposed, Extra::copy_rows>(rows, wide, from);
  else if (t.row_sums)
    kernel = a == packed ? kernel_of<packed, Extra::row_sums>(rows, wide, from)
                         : kernel_of<transposed, Extra::row_sums>(rows, wide, from);
  else
    kernel = a == packed ? kernel_of<packed>(rows, wide, from) : kernel_of<transposed>(rows, wide, from);
  kernel(t);
}

}  // namespace llm::microkernel
