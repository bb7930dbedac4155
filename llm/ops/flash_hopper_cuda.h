// Parts of the attention kernels for Hopper: the schedule of the work, rings of stages, maps of the tensors, and
// products.
//
// A block stays on its multiprocessor and takes one item of work after the other; an item is a tile of queries (or
// keys) of a head. One thread, the producer, has tiles copied into stages in shared memory, ahead of the consumers.
// These are warpgroups that own 64 rows of the item each and keep scores, probabilities and sums in registers, in the
// layout of flash_attention_cuda.h with one tile of 16 rows for each warp.
#pragma once
#include <algorithm>

#include "llm/device/cuda.h"
#include "llm/device/hopper.h"
#include "llm/ops/attention_cuda.h"
#include "llm/ops/flash_attention_cuda.h"

namespace llm::cuda::flash {

inline constexpr int kWarpgroup = 128;  // threads
inline constexpr int kGroupRows = 64;   // rows of a product that a warpgroup computes

// This thread's warpgroup, computed so that the compiler knows it to be the same for all lanes of a warp.
__device__ __forceinline__ int warpgroup() {
  return __shfl_sync(simt::kWholeWarp, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
}

__device__ __forceinline__ int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// A position in a ring of stages, and the parity of the current phase of that stage's barriers.
template <int kStages>
struct Place {
  int stage = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// Initialises the barriers of a ring. A stage is full when the copies that the producer has announced are complete, and
// empty when `warps` warps, all those of the consumers, have released it.
template <int kStages>
__device__ __forceinline__ void initialize_ring(simt::Barrier (&full)[kStages], simt::Barrier (&empty)[kStages],
                                                int warps) {
  for (int i = 0; i < kStages; ++i) {
    simt::initialize(full[i], 1);
    simt::initialize(empty[i], static_cast<unsigned>(warps));
  }
}

// Arrives at `barrier`, which counts warps, once for the calling warp.
__device__ __forceinline__ void release(simt::Barrier& barrier) {
  if (lane() == 0) simt::arrive(barrier);
}

// The order of the items of a launch. The heads are cut into sections whose tiles of the other side (keys and values)
// fit into the L2 cache. Within a section the items come from the longest tiles to the shortest. In each round every
// block takes one item (at the end of a section perhaps none), from the first block to the last and in the next round
// back, so that the blocks' shares of the work are about equal.
struct Schedule {
  int heads, tiles;        // heads of all batches; tiles of a head
  int section;             // heads of a section
  int rounds, all_rounds;  // rounds of a section; of all sections

  // Finds this block's next item from `round` on: the tile with that rank (0: the longest) of a head among those of all
  // batches. `round` becomes the round after it. false: there are no more items.
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

// An item as the producer passes it to the consumers, in shared memory: the batch, the head (of queries, or of keys),
// the first row of the item's own tile, and the first and the last tile of the other side that the item needs. Of a
// tile of queries also the position of its first row, and that at which its chunk begins.
struct alignas(16) Item {
  int batch, head, first_row, first_tile, last_tile;
  int position = 0, chunk = 0;
};
inline constexpr int kNoItem = -1;  // in place of the head: there are no more items

// The starts of the chunk to which an item's queries belong.
template <bool kDocuments>
__device__ __forceinline__ DocumentStarts<kDocuments> starts_of_item(const AttentionHeads& heads, const Item& item,
                                                                     const int32_t* starts) {
  const int behind = item.position - item.chunk;  // of the chunk's first query
  return {starts, item.batch, heads.tokens, {item.first_row, item.position, item.first_row - behind + heads.chunk}};
}

// The tile of queries with that rank, from the longest on. The tiles of a chunk are counted from its end, the last
// token rounded up to a warpgroup's 64 queries. So the first tile may begin before the chunk. The item lacks its head.
// It has a tile of keys even where documents hide them all.
template <int kQueries, int kKeys, bool kDocuments>
__device__ __forceinline__ Item query_item(const AttentionHeads& heads, int batch, int rank, const int32_t* starts) {
  const int each = (heads.chunk + kQueries - 1) / kQueries, number = heads.chunks - 1 - rank / each;
  const int at = round_up(heads.chunk, kGroupRows) - (rank % each + 1) * kQueries;  // in the chunk
  const int chunk = number ? heads.firsts[1] : heads.firsts[0], position = chunk + at;
  Item item = {batch, 0, number * heads.chunk + at, 0, 0, position, chunk};
  item.last_tile = (min(min(position + kQueries, chunk + heads.chunk), heads.keys) - 1) / kKeys;
  item.first_tile =
      min(starts_of_item<kDocuments>(heads, item, starts).of(max(position, chunk)) / kKeys, item.last_tile);
  return item;
}

inline Schedule schedule_of(int64_t heads, int64_t tiles, int64_t blocks, int64_t bytes_a_head) {
  constexpr int64_t kCache = 32 << 20;
  const int64_t least = (2 * blocks + tiles - 1) / tiles;  // heads that give two full rounds
  const int64_t most = std::min(heads, std::max(least, kCache / std::max<int64_t>(1, bytes_a_head)));
  const int64_t sections = (heads + most - 1) / most, section = (heads + sections - 1) / sections;
  const int64_t rounds = (section * tiles + blocks - 1) / blocks;
  return {static_cast<int>(heads), static_cast<int>(tiles), static_cast<int>(section), static_cast<int>(rounds),
          static_cast<int>((heads + section - 1) / section * rounds)};
}

// The map for copies of `rows` rows of a head from a matrix (B, T, columns), with the coordinates (column in its block
// of 64 columns, token, block of 64 columns, batch). Tokens beyond T are read as zeros.
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

// s (64, kRows) = a b^T, with 64 rows of `a` from `row` on and all rows of b.
template <int N, int kLeftRows, int kRows, int kHead>
__device__ __forceinline__ void row_products_async(float (&s)[N][4], const simt::SwizzledTile<kLeftRows, kHead>& a,
                                                   int row, const simt::SwizzledTile<kRows, kHead>& b) {
  static_assert(kRows == 8 * N);
#pragma unroll
  for (int step = 0; step < kHead / 16; ++step)
    simt::multiply_async<false>(s, simt::row_operand(a, row, step), simt::row_operand(b, 0, step), step > 0);
}
// out (64, kHead) = p b, or with `add` out += p b; p (64, kRows) is bf16 in registers.
template <int K, int N, int kRows, int kHead>
__device__ __forceinline__ void weighted_rows_async(float (&out)[N][4], const uint32_t (&p)[K][4],
                                                    const simt::SwizzledTile<kRows, kHead>& b, bool add) {
  static_assert(kRows == 16 * K && kHead == 8 * N);
#pragma unroll
  for (int step = 0; step < K; ++step)
    simt::multiply_async<true>(out, p[step], simt::column_operand(b, step), add || step > 0);
}
// Rounds accumulators to bf16, in the layout of a left operand.
template <int N>
__device__ __forceinline__ void pack(uint32_t (&p)[N / 2][4], const float (&s)[N][4]) {
#pragma unroll
  for (int k = 0; k < N / 2; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) p[k][i] = simt::pack_bf16(s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]);
}

// Writes the warp's 16 rows, each multiplied by its factor, like store_rows of flash_attention_cuda.h, through rows
// from `row` on of a tile that no copy or product uses any more. With `note`, `most` is raised to the largest absolute
// value that this lane writes.
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

// Like note_largest of largest_cuda.h, but for each warp by itself: the producer's threads do not take part.
__device__ __forceinline__ void note_largest_of_warp(float most, uint32_t* largest) {
  if (!largest) return;
  for (int offset = 16; offset > 0; offset /= 2) most = fmaxf(most, __shfl_xor_sync(simt::kWholeWarp, most, offset));
  if (lane() == 0) atomicMax(largest, bits_of(most));
}

}  // namespace llm::cuda::flash

namespace llm::cuda {

// The inputs and outputs of attention_backward: tensors of queries, and of keys and values, which may be one
// (AttentionHeads). statistics (B, H, attention_statistic_rows(T)): for each query
// log_sum_exp to base 2 and delta = rowsum(d_out * out); for queries beyond T infinity and 0, so that their
// probabilities are 0.
struct BackwardTensors {
  const bf16 *d_out, *q, *kv, *out;
  const float* log_sum_exp;
  const int32_t* starts;
  bf16 *d_q, *d_kv;
  float2* statistics;
  uint32_t* largest;  // of d_q
};

void query_gradient_hopper(cudaStream_t stream, int multiprocessors, const AttentionShape& s, const BackwardTensors& t);
void key_value_gradient_hopper(cudaStream_t stream, int multiprocessors, const AttentionShape& s,
                               const BackwardTensors& t);

}  // namespace llm::cuda
