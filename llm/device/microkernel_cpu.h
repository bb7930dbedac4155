// The inner loop of every matrix product on the CPU: a tile of C of up to kRows x kColumns in registers, one row of a
// panel of A broadcast against one row of a panel of B at each step of k.
//
// Every kernel here does the same multiply-adds in the same order for an element, whatever the height and width of its
// tile: sum = 0, sum += a(k) b(k) for k = 0, 1, ..., then C = sum or C = addend + sum. Callers rely on that for their
// bits.
#pragma once
#include <cstdint>

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

// One tile. A's element (i, k) is at a[i * a_row + k * a_step], and one of the two is 1; B's row k at b + k * b_step. Only
// `columns` columns are written; B must be readable in the kernel's full width.
struct Tile {
  int64_t k;
  const float* a;
  int64_t a_row, a_step;
  const float* b;
  int64_t b_step;
  float* c;
  int64_t c_stride;
  const float* addend;  // may be C; nullptr for none
  int64_t addend_stride;
  int64_t columns;
  const float* beside = nullptr;  // with C's stride: brought closer together with C
  bool c_is_near = false;         // in the first-level cache, so that nothing is to be fetched
  float* b_copy = nullptr;        // where B's rows are copied to on their way, side by side, for the tiles that follow
  // What will be read soon is brought into L2 meanwhile, a line a step of k: the lines at fetch + 16 block * fetch_block
  // + step * fetch_step, 16 steps to a block.
  const float* fetch = nullptr;
  int64_t fetch_step = 0, fetch_block = 0;
  // From memory it is brought more slowly, kTrickle lines every 16 steps of k, trickle_step apart: a core has so few loads under
  // way that one a step would hold up all others. Only where a_step is 1.
  const float* trickle = nullptr;
  int64_t trickle_step = 0;
  // Of a transposed A also the sums of its rows go here, on top of what is there or not.
  float* row_sums = nullptr;
  bool add_to_row_sums = false;
};

inline constexpr int64_t kTrickle = 4;  // lines every 16 steps

// A tile of `rows` <= kRows rows, of one or two vectors as its columns need.
void multiply_tile(int64_t rows, const Tile& t);

// Cuts `count` rows into panels of nearly equal height: a ragged last panel would leave the pipelines half empty.
struct RowPanels {
  int64_t rows, count;
  explicit RowPanels(int64_t m, int64_t most = kRows) : rows(m), count((m + most - 1) / most) {}
  int64_t begin(int64_t panel) const { return panel * rows / count; }
};

}  // namespace llm::microkernel
