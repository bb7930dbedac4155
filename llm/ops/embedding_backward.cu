// embedding_backward: d_token_table[token] += dx, d_position_table[position] += dx, each sum in one fixed order,
// without float atomics and without a list for each token of the vocabulary.
//
// First the B T positions are sorted by token. A bitonic network (Batcher 1968) sorts tiles of 1024, in registers up to
// distance 16 and in shared memory beyond. Then 16 sorted runs at a time are merged: an element finds its place by
// counting in each run the elements that come before it. The sorted list is cut into tiles of 32 entries, and a warp
// adds up the runs of equal tokens of one tile, 128 channels wide. The sum of a run that lies within a tile goes to the
// table. Of a run that crosses tiles, each tile leaves its part in the workspace, and a second kernel adds these parts
// in order. So the work does not depend on how often a token occurs.
//
// Bytes: dx is read once; the table's rows that occur are written once (and read once where they are added to); the
// lists take 12 bytes a position for the sort and 16 for each merge. For the position table dx is read once more. Where
// the table is overwritten, all of it is cleared first.
#include <bit>

#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/chunks.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/cuda_workspaces.h"

namespace llm::cuda {
namespace {

// An entry of the list: the token in the upper half, its position in the lower half. No two entries are equal.
using Key = uint64_t;
__device__ int32_t token_of(Key key) { return static_cast<int32_t>(key >> 32); }
__device__ int64_t position_of(Key key) { return static_cast<int64_t>(key & 0xffffffff); }

constexpr int kTokenBits = 22;  // of the 32 bits of a key within a tile; the rest is the position in the tile
static_assert(kSortTile == 1 << (32 - kTokenBits));

struct SortShared {
  uint32_t keys[2][kSortTile];  // used in turn, so that one barrier for each exchange is enough
};

__global__ void __launch_bounds__(kSortTile) sort_tiles_kernel(const int32_t* __restrict__ tokens,  // (n)
                                                               int n, Key* __restrict__ keys) {     // (n)
  auto& s = simt::shared_memory<SortShared>();
  const int thread = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x * kSortTile);
  uint32_t key = 0xffffffff;  // beyond the list: comes last
  if (simt::in_bounds(first + thread < n))
    key = static_cast<uint32_t>(tokens[first + thread]) << (32 - kTokenBits) | static_cast<uint32_t>(thread);
  int turn = 0;
  for (int size = 2; size <= kSortTile; size *= 2)
    for (int distance = size / 2; distance > 0; distance /= 2) {
      uint32_t other;
      if (distance < 32) {
        other = __shfl_xor_sync(simt::kWholeWarp, key, distance);
      } else {
        s.keys[turn][thread] = key;
        __syncthreads();
        other = s.keys[turn][thread ^ distance];
        turn ^= 1;
      }
      const bool ascending = (thread & size) == 0, lower = (thread & distance) == 0;
      key = ascending == lower ? min(key, other) : max(key, other);
    }
  if (simt::in_bounds(first + thread < n)) {
    const uint32_t place = key & (kSortTile - 1), token = key >> (32 - kTokenBits);
    keys[first + thread] = Key{token} << 32 | (static_cast<uint32_t>(first) + place);
  }
}

constexpr int kMergeThreads = 256, kMergedRuns = 16, kRunsAtOnce = 4;

// Merges runs of `length` sorted keys (the last run may be shorter) into runs of kMergedRuns * length.
__global__ void __launch_bounds__(kMergeThreads)
    merge_kernel(const Key* __restrict__ keys,                           // (n)
                 Key* __restrict__ merged, int64_t n, int64_t length) {  // (n)
  const int64_t i = int64_t{blockIdx.x} * kMergeThreads + threadIdx.x;
  if (simt::in_bounds(i < n)) {
    const Key key = keys[i];
    const int64_t begin = i / (kMergedRuns * length) * kMergedRuns * length;
    const int64_t end = min(begin + kMergedRuns * length, n);
    int64_t rank = 0;  // of the key among the keys of all runs
    for (int64_t first = begin; first < end; first += kRunsAtOnce * length) {
      int64_t before[kRunsAtOnce] = {};  // how many keys of each run come before this key: several searches at once
      for (int64_t step = length; step > 0; step /= 2)
#pragma unroll
        for (int r = 0; r < kRunsAtOnce; ++r) {
          const int64_t at = first + r * length + before[r] + step - 1;
          if (before[r] + step <= length && at < end && keys[at] < key) before[r] += step;
        }
#pragma unroll
      for (int r = 0; r < kRunsAtOnce; ++r) rank += before[r];
    }
    merged[begin + rank] = key;
  }
}

constexpr int kSumWarps = 8, kSumThreads = 32 * kSumWarps;  // the most of a block
constexpr int kAtOnce = 8;                                  // rows of dx that a warp reads at once
static_assert(kEmbeddingTile == 32, "a lane for each place of a tile");

template <int kWidth>
struct Sum {
  float values[kWidth];
  __device__ void store(float* to, bool add) const {
    using Pack = simt::Pack<float, kWidth>;
    Pack p;
    if (add) p = *reinterpret_cast<const Pack*>(to);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) p.values[k] = add ? p.values[k] + values[k] : values[k];
    *reinterpret_cast<Pack*>(to) = p;
  }
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kSumThreads) sum_tiles_kernel(
    const Key* __restrict__ keys,  // (n), sorted
    const T* __restrict__ dx,      // (n, C)
    float* __restrict__ table,     // (V, C)
    float* __restrict__ partial,   // (tiles, 2, C): of the run that began before, of the one that goes on
    int64_t n, int64_t channels, bool add) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t begin = int64_t{blockIdx.x} * kEmbeddingTile;
  const int64_t c = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kWidth;
  const bool here = c < channels;
  const auto places = static_cast<int>(min(kEmbeddingTile, n - begin));
  const Key key = keys[begin + min(lane, places - 1)];
  // A bit for each entry of the tile: whether its run goes on with the next entry of the list.
  const int64_t next = begin + lane + 1;
  const bool goes_on = next < n && token_of(keys[next]) == token_of(key);
  const unsigned going_on = __ballot_sync(simt::kWholeWarp, goes_on);
  const bool came_in = begin > 0 && token_of(keys[begin - 1]) == token_of(__shfl_sync(simt::kWholeWarp, key, 0));

  bool begun_here = !came_in;
  Sum<kWidth> sum{};
  for (int first = 0; first < places; first += kAtOnce) {
    simt::Pack<T, kWidth> rows[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t position = position_of(__shfl_sync(simt::kWholeWarp, key, first + i));
      if (simt::in_bounds(here && first + i < places))
        rows[i] = *reinterpret_cast<const simt::Pack<T, kWidth>*>(dx + position * channels + c);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int place = first + i;
      const int64_t token = token_of(__shfl_sync(simt::kWholeWarp, key, place));
      if (simt::in_bounds(here && place < places)) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) sum.values[k] += rows[i].get(k);
        const bool ends = !(going_on >> place & 1), leaves = place == places - 1 && !ends;
        if (ends || leaves) {
          if (ends && begun_here)
            sum.store(table + token * channels + c, add);
          else
            sum.store(partial + (2 * int64_t{blockIdx.x} + (begun_here ? 1 : 0)) * channels + c, false);
          sum = {};
          begun_here = true;
        }
      }
    }
  }
}

// Adds up the parts of runs that cross tiles: the warps of the tile in which a run begins add all of its parts.
template <int kWidth>
__global__ void __launch_bounds__(kSumThreads)
    sum_crossing_runs_kernel(const Key* __restrict__ keys,       // (n), sorted
                             const float* __restrict__ partial,  // (tiles, 2, C)
                             float* __restrict__ table,          // (V, C)
                             int64_t n, int64_t channels, bool add) {
  const int64_t tile = blockIdx.x, begin = tile * kEmbeddingTile, end = begin + kEmbeddingTile;
  const int64_t c = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kWidth;
  if (end >= n) return;
  const int64_t token = token_of(keys[end - 1]);
  if (token_of(keys[end]) != token) return;                     // the run ends in this tile
  if (begin > 0 && token_of(keys[begin - 1]) == token) return;  // the run began before this tile
  int64_t last = end, beyond = n;  // the last entry known to be of the run, the first known not to be
  while (beyond - last > 1) {
    const int64_t middle = (last + beyond) / 2;
    (token_of(keys[middle]) == token ? last : beyond) = middle;
  }
  if (simt::in_bounds(c < channels)) {
    using Pack = simt::Pack<float, kWidth>;
    const Pack own = *reinterpret_cast<const Pack*>(partial + (2 * tile + 1) * channels + c);
    Sum<kWidth> sum;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum.values[k] = own.values[k];
#pragma unroll 4
    for (int64_t t = tile + 1; t <= last / kEmbeddingTile; ++t) {
      const Pack part = *reinterpret_cast<const Pack*>(partial + 2 * t * channels + c);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum.values[k] += part.values[k];
    }
    sum.store(table + token * channels + c, add);
  }
}

// d_position_table[p] = the sum over the sequences of dx at position p; 0 for positions that no token has.
template <class T, int kWidth>
__global__ void __launch_bounds__(kSumThreads)
    sum_positions_kernel(const T* __restrict__ dx,       // (B, T, C)
                         float* __restrict__ positions,  // (context, C)
                         int64_t batch, int64_t tokens, Chunks chunks, int64_t channels, bool add) {
  const int64_t t = chunks.token_at(blockIdx.x), c = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kWidth;
  if (simt::in_bounds(c < channels)) {
    Sum<kWidth> sum{};
    if (t >= 0)
#pragma unroll 4
      for (int64_t b = 0; b < batch; ++b) {
        const auto d = *reinterpret_cast<const simt::Pack<T, kWidth>*>(dx + (b * tokens + t) * channels + c);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) sum.values[k] += d.get(k);
      }
    sum.store(positions + int64_t{blockIdx.x} * channels + c, add);
  }
}

// Sorts the list of (token, position); the result is in one of the two lists of the workspace.
const Key* sort_tokens(const KernelCall& call, int64_t n) {
  auto* keys = call.workspace<Key>();
  auto* other = keys + n;
  const auto tiles = static_cast<unsigned>((n + kSortTile - 1) / kSortTile);
  simt::launch(call.cuda->stream(), dim3(tiles), dim3(kSortTile), sizeof(SortShared), sort_tiles_kernel, call.in_int(0),
               static_cast<int>(n), keys);
  for (int64_t length = kSortTile; length < n; length *= kMergedRuns) {
    simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>((n + kMergeThreads - 1) / kMergeThreads)),
                 dim3(kMergeThreads), 0, merge_kernel, keys, other, n, length);
    std::swap(keys, other);
  }
  return keys;
}

template <class T, int kWidth>
void backward_by(const KernelCall& call) {
  const cudaStream_t stream = call.cuda->stream();
  const T* dx = call.in<T>(1);
  float *table = call.out(0), *positions = call.out(1);
  const int64_t batch = call.in_shape(0)[0], tokens = call.in_shape(0)[1], n = batch * tokens;
  const int64_t channels = call.in_shape(2)[1], warps = (channels + 32 * kWidth - 1) / (32 * kWidth);
  const int64_t block_warps = std::min<int64_t>(warps, kSumWarps);
  const dim3 threads(static_cast<unsigned>(32 * block_warps));
  const auto grid = [&](int64_t rows) {
    return dim3(static_cast<unsigned>(rows), static_cast<unsigned>((warps + block_warps - 1) / block_warps));
  };
  const bool add = call.accumulates(0);
  if (!add && cudaMemsetAsync(table, 0, call.graph.tensor(call.node.outputs[0]).bytes(), stream) != cudaSuccess)
    fail("CUDA: embedding_backward: the table's gradient cannot be cleared");
  const Key* keys = sort_tokens(call, n);
  auto* partial = call.workspace() + embedding_keys_bytes_cuda(n) / 4;
  const int64_t tiles = embedding_tiles_cuda(n);
  simt::launch(stream, grid(tiles), threads, 0, sum_tiles_kernel<T, kWidth>, keys, dx, table, partial, n, channels,
               add);
  simt::launch(stream, grid(tiles), threads, 0, sum_crossing_runs_kernel<kWidth>, keys, partial, table, n, channels,
               add);
  if (positions)
    simt::launch(stream, grid(call.out_shape(1)[0]), threads, 0, sum_positions_kernel<T, kWidth>, dx, positions, batch,
                 tokens, chunks_of(call.node.attributes, tokens), channels, call.accumulates(1));
}

template <class T>
void backward_as(const KernelCall& call) {
  const int64_t channels = call.in_shape(2)[1];
  const auto aligned = [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; };
  const bool packs = channels % 4 == 0 && aligned(call.in<T>(1)) && aligned(call.out(0)) && aligned(call.out(1)) &&
                     aligned(call.workspace());
  packs ? backward_by<T, 4>(call) : backward_by<T, 1>(call);
}

}  // namespace

void embedding_backward(const KernelCall& call) {
  if (call.in_shape(2)[0] > 1 << kTokenBits)
    fail("embedding_backward: a vocabulary of ", call.in_shape(2)[0], " is too large for the GPU: ", 1 << kTokenBits,
         " are the most");
  call.in_dtype(1) == DType::bf16 ? backward_as<bf16>(call) : backward_as<float>(call);
}

}  // namespace llm::cuda
