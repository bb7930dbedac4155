// Parts of the attention kernels for Hopper: who works on what, stages of tiles, and maps of the tensors.
//
// A block stays on its multiprocessor and takes one item of work after the other: a tile of queries (or keys) of a head. A
// producer warp has tiles copied into stages in shared memory, ahead of the consumers: warpgroups that own 64 rows of
// the item each, and keep scores, probabilities and sums in registers. A score's place in them is that of
// flash_attention_cuda.h, with one tile of 16 rows for each warp.
#pragma once
#include <algorithm>

#include "llm/device/cuda.h"
#include "llm/device/hopper.h"
#include "llm/ops/attention_cuda.h"
#include "llm/ops/flash_attention_cuda.h"

namespace llm::cuda::flash {

inline constexpr int kWarpgroup = 128;  // threads
inline constexpr int kGroupRows = 64;   // rows of a product that a warpgroup has

// This thread's warpgroup, in a form that the compiler knows to be the same for the warp.
__device__ __forceinline__ int warpgroup() {
  return __shfl_sync(simt::kWholeWarp, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
}

__device__ __forceinline__ int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// The place in a ring of stages, and the parity of the phase in which its barriers are.
template <int kStages>
struct Place {
  int stage = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// Of each stage: full when the copies are there that one thread announces, empty when all consumers' warps have released it.
template <int kStages>
__device__ __forceinline__ void initialize_ring(simt::Barrier (&full)[kStages], simt::Barrier (&empty)[kStages],
                                                int warps) {
  for (int i = 0; i < kStages; ++i) {
    simt::initialize(full[i], 1);
    simt::initialize(empty[i], static_cast<unsigned>(warps));
  }
}

// Once for each warp: `barrier` counts warps.
__device__ __forceinline__ void release(simt::Barrier& barrier) {
  if (lane() == 0) simt::arrive(barrier);
}

// The items of a launch, in sections of so many heads as the L2 cache holds the keys and values of, in each tile by tile from the
// longest to the shortest. In each round every block takes an item, at the end of a section perhaps none, in turns from
// the first block to the last and back, so that their shares are about equal.
struct Schedule {
  int heads, tiles;        // of all batches; of a head
  int section;             // heads
  int rounds, all_rounds;  // of a section; of all

  // This block's next item from `round` on, which becomes the round after it: the tile of that rank (0: the longest) of a
  // head; false: there is none.
  __device__ __forceinline__ bool next(int& round, int& head, int& rank) const {
    const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
    while (round < all_rounds) {
      const int first = round / rounds * section, here = min(section, heads - first);
      const int place = round % rounds * blocks + (round % 2 ? blocks - 1 - block : block);
      ++round;
      if (place >= here * tiles) continue;
      head = first + place % here, rank = place / here;
      return true;
    }
    return false;
  }
};

// An item as the producer tells it to the consumers, in shared memory beside the item's own tiles: a head (of queries, or of keys)
// of a batch, the first of the item's rows, and the other side's tiles that these need.
struct alignas(16) Item {
  int batch, head, first_row, first_tile, last_tile;
};
inline constexpr int kNoItem = -1;  // as a head: there are no more

inline Schedule schedule_of(int64_t heads, int64_t tiles, int64_t blocks, int64_t bytes_a_head) {
  constexpr int64_t kCache = 32 << 20;
  const int64_t least = (2 * blocks + tiles - 1) / tiles;  // so that rounds are full
  const int64_t most = std::min(heads, std::max(least, kCache / std::max<int64_t>(1, bytes_a_head)));
  const int64_t sections = (heads + most - 1) / most, section = (heads + sections - 1) / sections;
  const int64_t rounds = (section * tiles + blocks - 1) / blocks;
  return {static_cast<int>(heads), static_cast<int>(tiles), static_cast<int>(section), static_cast<int>(rounds),
          static_cast<int>((heads + section - 1) / section * rounds)};
}

// Boxes of `rows` rows of a head in a (B, T, columns) matrix: coordinates (column in the block, token, block of 64 columns,
// batch). Tokens beyond T read as zeros.
inline simt::TensorMap head_map(const bf16* matrix, int64_t batch, int64_t tokens, int64_t columns, int head_size,
                                int rows) {
  const uint64_t sizes[4] = {64, static_cast<uint64_t>(tokens), static_cast<uint64_t>(columns / 64),
                             static_cast<uint64_t>(batch)};
  const uint64_t strides[3] = {static_cast<uint64_t>(columns) * sizeof(bf16), 64 * sizeof(bf16),
                               static_cast<uint64_t>(tokens * columns) * sizeof(bf16)};
  const uint32_t box[4] = {64, static_cast<uint32_t>(rows), static_cast<uint32_t>(head_size / 64), 1};
  return simt::tensor_map(matrix, sizes, strides, box);
}
template <int kRows, int kHead>
__device__ __forceinline__ void copy_tile(simt::SwizzledTile<kRows, kHead>& tile, const simt::TensorMap& map,
                                          int64_t column, int token, int batch, simt::Barrier& full) {
  simt::copy_box_async(tile.values, map, 0, token, static_cast<int>(column / 64), batch, full);
}

// s = a b^T: 64 rows of `a` from `row` on, and all rows of b.
template <int N, int kLeftRows, int kRows, int kHead>
__device__ __forceinline__ void row_products_async(float (&s)[N][4], const simt::SwizzledTile<kLeftRows, kHead>& a,
                                                   int row, const simt::SwizzledTile<kRows, kHead>& b) {
  static_assert(kRows == 8 * N);
#pragma unroll
  for (int step = 0; step < kHead / 16; ++step)
    simt::multiply_async<false>(s, simt::row_operand(a, row, step), simt::row_operand(b, 0, step), step > 0);
}
// out += p b, with p of bf16 in registers.
template <int K, int N, int kRows, int kHead>
__device__ __forceinline__ void weighted_rows_async(float (&out)[N][4], const uint32_t (&p)[K][4],
                                                    const simt::SwizzledTile<kRows, kHead>& b, bool add) {
  static_assert(kRows == 16 * K && kHead == 8 * N);
#pragma unroll
  for (int step = 0; step < K; ++step)
    simt::multiply_async<true>(out, p[step], simt::column_operand(b, step), add || step > 0);
}
// Accumulators become a left operand.
template <int N>
__device__ __forceinline__ void pack(uint32_t (&p)[N / 2][4], const float (&s)[N][4]) {
#pragma unroll
  for (int k = 0; k < N / 2; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) p[k][i] = simt::pack_bf16(s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]);
}

// Writes the warp's 16 rows, each times its factor, as store_rows of flash_attention_cuda.h does, through rows `row` and on
// of a tile that no copy or product uses any more. With `note`, `most` becomes the largest absolute value if that is more.
template <int kRows, int kHead>
__device__ __forceinline__ void store_rows(simt::SwizzledTile<kRows, kHead>& tile, int row,
                                           const float (&out)[kHead / 8][4], float first_factor, float second_factor,
                                           bf16* matrix, int64_t stride, int first, int end, bool note, float& most) {
  constexpr int kChunks = kHead / 8;
  const int lane = simt::computed_here(flash::lane());
#pragma unroll
  for (int n = 0; n < kChunks; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float factor = half ? second_factor : first_factor;
      *reinterpret_cast<uint32_t*>(tile.chunk(row + 8 * half + lane / 4, n) + 2 * (lane % 4)) =
          simt::pack_bf16(out[n][2 * half] * factor, out[n][2 * half + 1] * factor);
    }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kChunks / 2; ++i) {
    const int r = (32 * i + lane) / kChunks, chunk = (32 * i + lane) % kChunks;
    const auto values = *reinterpret_cast<const simt::Pack<bf16>*>(tile.chunk(row + r, chunk));
    if (simt::in_bounds(first + r < end)) {
      *reinterpret_cast<simt::Pack<bf16>*>(matrix + int64_t{first + r} * stride + 8 * chunk) = values;
      if (note)
#pragma unroll
        for (int k = 0; k < 8; ++k) most = fmaxf(most, fabsf(values.get(k)));
    }
  }
}

// Each warp for itself: note_largest of largest_cuda.h needs all threads of the block.
__device__ __forceinline__ void note_largest_of_warp(float most, uint32_t* largest) {
  if (!largest) return;
  for (int offset = 16; offset > 0; offset /= 2) most = fmaxf(most, __shfl_xor_sync(simt::kWholeWarp, most, offset));
  if (lane() == 0) atomicMax(largest, bits_of(most));
}

}  // namespace llm::cuda::flash

namespace llm::cuda {

// attention_backward's inputs and outputs; `statistics` (B, H, attention_statistic_rows(T)): of each query log_sum_exp to base 2
// and delta = rowsum(d_out * out), of those beyond T infinity and 0, so that their probabilities are 0.
struct BackwardTensors {
  const bf16 *d_out, *qkv, *out;
  const float* log_sum_exp;
  const int32_t* starts;
  bf16* d_qkv;
  float2* statistics;
  uint32_t* largest;
};

void query_gradient_hopper(cudaStream_t stream, int multiprocessors, const AttentionShape& s, const BackwardTensors& t);
void key_value_gradient_hopper(cudaStream_t stream, int multiprocessors, const AttentionShape& s,
                               const BackwardTensors& t);

}  // namespace llm::cuda
