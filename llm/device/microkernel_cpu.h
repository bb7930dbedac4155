// The inner loop of the blocked matrix products on the CPU: a tile of C of up to kRows x kColumns stays in registers;
// at each step of k it broadcasts the elements of one column of A and multiplies them with one row of B.
//
// Every kernel here does the same multiply-adds in the same order for an element of C, whatever the height and width of
// its tile: sum = 0; sum += a(k) b(k) for k = 0, 1, ...; then C = sum or C = addend + sum. Callers rely on these bits.
#pragma once
#include <cstdint>

#include "llm/base/simd.h"

namespace llm::microkernel {

using simd::kLanes;
using simd::Vec;

// As many accumulators (2 kRows) as the registers hold besides two vectors of B and one of A: 28 of 32 with AVX-512, 24
// of 32 with NEON, 12 of 16 with AVX2.
#if defined(__AVX512F__)
inline constexpr int kRows = 14;
#elif defined(__aarch64__)
inline constexpr int kRows = 12;
#else
inline constexpr int kRows = 6;
#endif
inline constexpr int kColumns = 2 * kLanes;
inline constexpr int kRowsMoved =
    kRows <= kLanes ? kLanes : kRows;  // kRows floats, or a vector that holds them: one move

// sum + a b, rounded once where the processor has such an instruction: the compiler, which would join the two operations as
// well, thinks better of it where only one sum is made (GCC, tuning for Zen), and that sum would have other bits.
inline Vec multiply_add(Vec a, Vec b, Vec sum) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__FMA__) && defined(__AVX2__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
  return sum + a * b;
#endif
}

// The product of one tile. A's element (i, k) is at a[i * a_row + k * a_step], where a_row or a_step is 1; B's row k is
// at b + k * b_step. Only `columns` columns are written, but B must be readable in the full width of one or two
// vectors.
struct Tile {
  int64_t k;
  const float* a;
  int64_t a_row, a_step;
  const float* b;
  int64_t b_step;
  float* c;
  int64_t c_stride;
  const float* addend;  // may be C; null: none
  int64_t addend_stride;
  int64_t columns;
  const float* beside = nullptr;  // a matrix with C's stride that is prefetched together with C; null: none
  bool c_is_near = false;         // C is in the first-level cache, so that neither is prefetched
  float* b_copy = nullptr;        // where B's rows are copied to, kColumns floats apart, for the tiles that follow
  // For a transposed A: where its elements are copied to, kRows floats for each k, for the tiles that follow. Copied are
  // kRowsMoved floats at a time, so that many must be readable at each k, and room for them behind the last.
  float* a_copy = nullptr;
  // What will be read soon is prefetched into L2, one cache line for each step of k: in steps 16 i to 16 i + 15 the
  // lines at fetch + i * fetch_block + (0 to 15) * fetch_step.
  const float* fetch = nullptr;
  int64_t fetch_step = 0, fetch_block = 0;
  // What must come from memory is prefetched more slowly, kTrickle lines for 16 steps of k, trickle_step apart: a core
  // has few outstanding loads, and one for each step would delay all others. Only where a_step is 1.
  const float* trickle = nullptr;
  int64_t trickle_step = 0;
  // For a transposed A: where the sums of its rows go; they are added to what is there or overwrite it.
  float* row_sums = nullptr;
  bool add_to_row_sums = false;
};

inline constexpr int64_t kTrickle = 4;  // lines for 16 steps

// Computes a tile of `rows` <= kRows rows and of one or two vectors, as its columns need.
void multiply_tile(int64_t rows, const Tile& t);

// Cuts `rows` rows into `count` panels of nearly equal height: a low last panel would leave the pipelines half empty.
struct RowPanels {
  int64_t rows, count;
  explicit RowPanels(int64_t m, int64_t most = kRows) : rows(m), count((m + most - 1) / most) {}
  int64_t begin(int64_t panel) const { return panel * rows / count; }
};

}  // namespace llm::microkernel
