// Parts of the tensor-core attention kernels: tiles in shared memory, operands of products, masks, and stores.
//
// A warp owns 16 M rows of a product (queries, or keys where the scores are transposed) and holds an M x N array of 16
// x 8 accumulators. Of each of these, lane = 4 group + member holds the rows group and group + 8 and the columns 2
// member and 2 member + 1 (simt::mma_16x8x16). So the values of a row are in the four lanes of a group.
#pragma once
#include <cmath>

#include "llm/device/simt.h"

namespace llm::cuda::flash {

inline constexpr float kLog2E = 1.4426950408889634f;

__device__ inline int lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ inline int warp() { return static_cast<int>(threadIdx.x) / 32; }
__device__ inline int group() { return lane() / 4; }
__device__ inline int member() { return lane() % 4; }

// kRows rows of a head (kHead). The 16-byte chunks of a row are permuted, so that eight rows' chunks of the same number
// (the load of a matrix) touch every bank once, and so do the chunks of a row (a copy).
template <int kRows, int kHead>
struct Tile {
  static constexpr int kChunks = kHead / 8;
  static_assert(kChunks % 4 == 0);
  bf16 values[kRows * kHead];

  __device__ bf16* chunk(int row, int i) { return values + row * kHead + (i ^ turn(row)) * 8; }
  __device__ const bf16* chunk(int row, int i) const { return values + row * kHead + (i ^ turn(row)) * 8; }
  // The address that this lane passes to simt::load_matrix_x4 for the four 8 x 8 matrices of rows `row` to `row` + 15
  // (`row` is a multiple of 16) and columns 16 k to 16 k + 15. Order: rows 0 to 7, then 8 to 15, of the lower eight
  // columns; then the same rows of the higher columns.
  __device__ const bf16* matrices(int row, int k) const {
    const int r = lane() % 16;
    return values + (row + r) * kHead + ((2 * k + lane() / 16) ^ turn(r)) * 8;
  }

 private:
  __device__ static int turn(int row) { return kChunks % 8 == 0 ? row % 8 : row / 2 % 4; }
};

// Starts to copy rows [first, first + kRows) of the first kHead columns of a matrix; rows from `end` on, where the
// sequence ends, become zeros. All kThreads threads of the block take part.
template <int kThreads, int kRows, int kHead>
__device__ inline void copy_tile_async(Tile<kRows, kHead>& tile, const bf16* matrix, int stride, int first, int end) {
  constexpr int kChunks = kHead / 8, kLanes = kChunks % 8 == 0 ? 8 : 4;  // kLanes threads share a row
  constexpr int kStep = kThreads / kLanes;
  static_assert(kRows % kStep == 0);
  const int first_row = static_cast<int>(threadIdx.x) / kLanes, chunk = static_cast<int>(threadIdx.x) % kLanes;
#pragma unroll 1  // unrolled, it would take registers from the main loop
  for (int row = first_row; row < first_row + kRows; row += kStep) {
    const bool valid = simt::in_bounds(first + row < end);
    const bf16* const from = matrix + int64_t{min(first + row, end - 1)} * stride + 8 * chunk;
#pragma unroll
    for (int j = 0; j < kChunks; j += kLanes) simt::copy_async_16(tile.chunk(row, chunk + j), from + 8 * j, valid);
  }
}

// The left operand of a warp's products, 16 M rows of a tile from `row` on. With kHeld it stays in registers; otherwise
// it is loaded from shared memory for each product.
template <int M, int kRows, int kHead, bool kHeld>
class RowOperand {
 public:
  __device__ RowOperand(const Tile<kRows, kHead>& tile, int row) : tile_(tile), row_(row) {
    if constexpr (kHeld)
#pragma unroll
      for (int k = 0; k < kHead / 16; ++k) load(held_[k], k);
  }
  // Gives columns 16 k to 16 k + 15.
  __device__ void get(uint32_t (&a)[M][4], int k) const {
    if constexpr (kHeld) {
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) a[m][i] = held_[k][m][i];
    } else {
      load(a, k);
    }
  }

 private:
  __device__ void load(uint32_t (&a)[M][4], int k) const {
#pragma unroll
    for (int m = 0; m < M; ++m) simt::load_matrix_x4(a[m], tile_.matrices(row_, k) + 16 * m * kHead);
  }

  const Tile<kRows, kHead>& tile_;
  const int row_;
  uint32_t held_[kHeld ? kHead / 16 : 1][M][4];
};

// s (16 M, 8 N) = a b^T, where b is the 8 N rows of a tile from `row` on.
template <int M, int N, int kLeftRows, int kRows, int kHead, bool kHeld>
__device__ inline void multiply_transposed(float (&s)[M][N][4], const RowOperand<M, kLeftRows, kHead, kHeld>& a,
                                           const Tile<kRows, kHead>& b, int row) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[m][n][i] = 0;
// Without kHeld, unrolling further would need more registers than there are.
#pragma unroll(kHeld ? kHead / 16 : 2)
  for (int k = 0; k < kHead / 16; ++k) {
    uint32_t left[M][4];
    a.get(left, k);
    const bf16* const at = b.matrices(row, k);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t right[4];
      simt::load_matrix_x4(right, at + 8 * n * kHead);
      const uint32_t first[2] = {right[0], right[2]}, second[2] = {right[1], right[3]};
#pragma unroll
      for (int m = 0; m < M; ++m) simt::mma_16x8x16(s[m][n], left[m], first);
#pragma unroll
      for (int m = 0; m < M; ++m) simt::mma_16x8x16(s[m][n + 1], left[m], second);
    }
  }
}

// out (16 M, kHead) += p b, where b is the 8 N rows of a tile from `row` on. The accumulators p are rounded to bf16,
// which puts them into the layout of a left operand.
template <int M, int N, int kRows, int kHead>
__device__ inline void multiply(float (&out)[M][kHead / 8][4], const float (&p)[M][N][4], const Tile<kRows, kHead>& b,
                                int row) {
#pragma unroll
  for (int k = 0; k < N / 2; ++k) {
    uint32_t left[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        left[m][i] = simt::pack_bf16(p[m][2 * k + i / 2][i % 2 * 2], p[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int n = 0; n < kHead / 8; n += 2) {
      uint32_t right[4];
      simt::load_matrix_x4_transposed(right, b.matrices(row, n / 2) + 16 * k * kHead);
      const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
      for (int m = 0; m < M; ++m) simt::mma_16x8x16(out[m][n], left[m], first);
#pragma unroll
      for (int m = 0; m < M; ++m) simt::mma_16x8x16(out[m][n + 1], left[m], second);
    }
  }
}

// Scores of keys that come after the query, or from key `keys` on, become -infinity, so that their exponentials are 0.
// The first row is query `row` and the first column key `column`; with kTransposed the first row is key `row` and the
// first column query `column`.
template <bool kTransposed, int M, int N>
__device__ inline void mask_later_keys(float (&s)[M][N][4], int row, int column, int keys) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = row + 16 * m + 8 * (i / 2) + group(), c = column + 8 * n + 2 * member() + i % 2;
        if (kTransposed ? r > c : c > min(r, keys - 1)) s[m][n][i] = -INFINITY;
      }
}

// The same for keys that lie before the start of the query's document.
template <bool kTransposed, int M, int N, class Starts>
__device__ inline void mask_earlier_documents(float (&s)[M][N][4], int row, int column, const Starts& starts) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + 16 * m + 8 * (i / 2) + group();
      const int start = kTransposed ? 0 : starts.of(r);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const int c = column + 8 * n + 2 * member() + i % 2;
        if (kTransposed ? r < starts.of(c) : c < start) s[m][n][i] = -INFINITY;
      }
    }
}

// The sum and the maximum over the four lanes of a group, in all of them.
__device__ inline float group_sum(float x) {
  x += __shfl_xor_sync(simt::kWholeWarp, x, 1);
  return x + __shfl_xor_sync(simt::kWholeWarp, x, 2);
}
__device__ inline float group_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(simt::kWholeWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(simt::kWholeWarp, x, 2));
}

// Writes the warp's 16 M rows, each multiplied by its factor, to rows from `first` on of a matrix, up to row `end`, in
// chunks of 16 bytes. The rows pass through rows from `row` on of a tile, which no other warp may use any more. Returns
// the largest absolute value that this lane has written.
template <int M, int kRows, int kHead>
__device__ inline float store_rows(Tile<kRows, kHead>& tile, int row, const float (&out)[M][kHead / 8][4],
                                   const float (&factor)[M][2], bf16* matrix, int64_t stride, int first, int end) {
  constexpr int kChunks = kHead / 8;
  float most = 0;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < kChunks; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float low = out[m][n][2 * half] * factor[m][half], high = out[m][n][2 * half + 1] * factor[m][half];
        *reinterpret_cast<uint32_t*>(tile.chunk(row + 16 * m + 8 * half + group(), n) + 2 * member()) =
            simt::pack_bf16(low, high);
      }
  __syncwarp();
#pragma unroll
  for (int i = lane(); i < 16 * M * kChunks; i += 32) {
    const int r = i / kChunks, chunk = i % kChunks;
    if (simt::in_bounds(first + r < end)) {
      const auto pack = *reinterpret_cast<const simt::Pack<bf16>*>(tile.chunk(row + r, chunk));
      *reinterpret_cast<simt::Pack<bf16>*>(matrix + (first + r) * stride + 8 * chunk) = pack;
#pragma unroll
      for (int k = 0; k < 8; ++k) most = fmaxf(most, fabsf(pack.get(k)));
    }
  }
  return most;
}

}  // namespace llm::cuda::flash
