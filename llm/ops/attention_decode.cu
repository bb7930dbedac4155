// attention_cached: new tokens attend to a key-value cache, to which their own keys and values are appended; for
// generation, where T is 1 or a short part of a prompt. The time goes into reading the cache, so the whole GPU reads
// it, once.
//
// The filled part of the cache is cut into splits (Flash-Decoding, Dao et al. 2023). A block goes through the keys of
// one split and key-value head for up to kRows query rows: the query heads of the group, of one or several new tokens.
// kLanes lanes share a key, 8 channels each, and keep a running softmax (Milakov and Gimelshein 2018) of the keys that
// they see; at the end the block adds these up. Where the cache fills only one split, that is the result. Otherwise the
// block leaves the largest score, the sum and the output of each row in the workspace, and the last block of these rows
// adds up the splits, in a fixed order, whichever block is last. A launch must serve every position, so the grid is as
// large as the full cache needs, and blocks without keys end at once. The keys and values of the new tokens are read
// from qkv, so that nothing waits for the append.
// Bytes: queries, and keys and values up to the position, once (as long as a group's new rows fit into kRows).
#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/graph/kernel.h"
#include "llm/ops/attention_cuda.h"
#include "llm/ops/cuda_kernels.h"

namespace llm::cuda {
namespace {

using simt::kPack;
using simt::kWholeWarp;
using simt::Pack;

constexpr int kChannels = 8;        // of a lane
constexpr float kNoScore = -1e30f;  // less than any score, but finite, so that a difference of two is not NaN

// Threads of a block: few enough that blocks fit on a multiprocessor beside those of the previous kernel.
template <int kRows>
inline constexpr int kThreads = kRows == 1 ? 256 : 128;

template <int kRows>
__device__ int split_keys(int64_t length, int splits) {
  constexpr int64_t kLeast = attention_cached_split_keys(kRows);
  const int64_t keys = (length + splits - 1) / splits;
  return static_cast<int>((keys + kLeast - 1) / kLeast * kLeast);
}

// A lane's 8 channels of a row (D): packs of 16 bytes, of which neighbouring ones are on neighbouring lanes.
template <class T, int kLanes>
struct Channels {
  static constexpr int kPacks = kChannels / kPack<T>;
  Pack<T> packs[kPacks];

  __device__ static int first(int j) { return (j * kLanes + static_cast<int>(threadIdx.x) % kLanes) * kPack<T>; }
  __device__ float get(int i) const { return packs[i / kPack<T>].get(i % kPack<T>); }

  // Channels from `head_size` on become zeros.
  __device__ void load(const T* row, int head_size, bool packed) {
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      packs[j] = {};
      if (packed) {
        if (simt::in_bounds(first(j) < head_size)) packs[j] = *reinterpret_cast<const Pack<T>*>(row + first(j));
      } else {
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e)
          if (simt::in_bounds(first(j) + e < head_size)) packs[j].values[e] = row[first(j) + e];
      }
    }
  }
  __device__ void store(T* row, int head_size, bool packed) const {
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      if (packed) {
        if (simt::in_bounds(first(j) < head_size)) *reinterpret_cast<Pack<T>*>(row + first(j)) = packs[j];
      } else {
#pragma unroll
        for (int e = 0; e < kPack<T>; ++e)
          if (simt::in_bounds(first(j) + e < head_size)) row[first(j) + e] = packs[j].values[e];
      }
    }
  }
};

// A running softmax of one query row, over the keys seen: the largest score, the sum of 2^(score - largest), and the
// lane's channels of the sum of the values weighted by these powers.
struct Partial {
  float largest = kNoScore, sum = 0, out[kChannels] = {};

  __device__ void rescale(float to) {
    const float factor = simt::exp2_fast(largest - to);
    largest = to;
    sum *= factor;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) out[i] *= factor;
  }
  // Adds the softmax of the lane at xor distance `offset`, which adds this lane's.
  __device__ void add_lane(int offset) {
    rescale(fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, offset)));
    sum += __shfl_xor_sync(kWholeWarp, sum, offset);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) out[i] += __shfl_xor_sync(kWholeWarp, out[i], offset);
  }
};

template <class T, int kRows, int kLanes>
struct Shared {
  // The padding puts neighbouring channels, which lie rows of kLanes + kPadding floats apart, into different banks.
  static constexpr int kPadding = kPack<T> == 8 ? 4 : kLanes == 8 ? 0 : 8;
  static constexpr int kWarps = kThreads<kRows> / 32;
  float outs[kWarps][kRows][kChannels][kLanes + kPadding];
  float largest[kWarps][kRows], sums[kWarps][kRows];
};

// qkv (B, T, (H + 2 K) D), caches (B, capacity, K, D) -> out_rows (B, T, H D), caches. Through outs (B, T, H, splits,
// D) and stats (B, T, H, splits, 2) blocks pass their parts on. Grid (B K tiles of query rows, splits), a counter for
// each x.
template <class T, int kRows, int kLanes>
__global__ void __launch_bounds__(kThreads<kRows>)
    decode_kernel(PackedHeads heads, float scale, bool packed, int64_t capacity, const StepState* __restrict__ state,
                  const T* qkv, T* key_cache, T* value_cache, float* outs, float* stats, T* out_rows,
                  uint32_t* counters) {
  constexpr int kThreads = cuda::kThreads<kRows>, kWarps = kThreads / 32;
  constexpr int kKeysAtOnce = kThreads / kLanes;  // of the block
  constexpr int kUnrolled = kRows == 8 ? 2 : 4;   // keys of a group of lanes that are loaded at a time
  auto& shared = simt::shared_memory<Shared<T, kRows, kLanes>>();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int group = heads.group(), D = heads.head_size;
  const int rows = group * heads.tokens, row_tiles = (rows + kRows - 1) / kRows;
  const int row_tile = static_cast<int>(blockIdx.x) % row_tiles;
  const int kv_head = static_cast<int>(blockIdx.x) / row_tiles % heads.kv_heads;
  const int64_t batch = static_cast<int>(blockIdx.x) / row_tiles / heads.kv_heads;
  const int splits = static_cast<int>(gridDim.y), split = static_cast<int>(blockIdx.y);
  const int64_t position = state->position, length = position + heads.tokens;
  const int keys_per_split = split_keys<kRows>(length, splits);
  const int filled = static_cast<int>((length + keys_per_split - 1) / keys_per_split);
  const int64_t begin = int64_t{split} * keys_per_split;
  const int64_t end = begin + keys_per_split < length ? begin + keys_per_split : length;
  simt::let_next_start();
  if (begin < position) {  // the first cached keys can be prefetched before the wait for the previous kernel
    const int64_t key = begin + static_cast<int>(threadIdx.x) % (kKeysAtOnce * kUnrolled);
    const int64_t cached = ((batch * capacity + (key < position ? key : begin)) * heads.kv_heads + kv_head) * D;
    simt::prefetch(key_cache + cached);
    simt::prefetch(value_cache + cached);
  }
  simt::wait_for_inputs();
  if (begin >= end) return;
  const T* const new_tokens = qkv + batch * heads.tokens * heads.width();
  const auto token_of = [&](int row) { return (row_tile * kRows + row) / group; };
  const auto head_of = [&](int row) { return kv_head * group + (row_tile * kRows + row) % group; };

  float queries[kRows][kChannels];  // multiplied by the scale and log2(e), for exponentials of base 2
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    Channels<T, kLanes> query = {};
    if (simt::in_bounds(row_tile * kRows + row < rows))
      query.load(new_tokens + token_of(row) * heads.width() + heads.query(head_of(row)), D, packed);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) queries[row][i] = query.get(i) * (scale * 1.4426950408889634f);
  }

  Partial partials[kRows];
  for (int64_t base = begin; base < end; base += kKeysAtOnce * kUnrolled) {
    Channels<T, kLanes> keys[kUnrolled] = {}, values[kUnrolled] = {};
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      const int64_t key = base + u * kKeysAtOnce + static_cast<int>(threadIdx.x) / kLanes;
      const int64_t cached = ((batch * capacity + key) * heads.kv_heads + kv_head) * D;
      if (simt::in_bounds(key < end)) {
        const bool is_new = key >= position;
        const T* const row = new_tokens + (key - position) * heads.width();
        keys[u].load(is_new ? row + heads.key(kv_head) : key_cache + cached, D, packed);
        values[u].load(is_new ? row + heads.value(kv_head) : value_cache + cached, D, packed);
        if (is_new && row_tile == 0 && simt::in_bounds(key < capacity)) {
          keys[u].store(key_cache + cached, D, packed);
          values[u].store(value_cache + cached, D, packed);
        }
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int64_t last = position + token_of(row);  // the last key that the row sees
      float s[kUnrolled], largest = partials[row].largest;
#pragma unroll
      for (int u = 0; u < kUnrolled; ++u) {
        s[u] = 0;
#pragma unroll
        for (int i = 0; i < kChannels; ++i) s[u] += queries[row][i] * keys[u].get(i);
#pragma unroll
        for (int offset = kLanes / 2; offset > 0; offset /= 2) s[u] += __shfl_xor_sync(kWholeWarp, s[u], offset);
        const int64_t key = base + u * kKeysAtOnce + static_cast<int>(threadIdx.x) / kLanes;
        if (key >= end || key > last) s[u] = -INFINITY;
        largest = fmaxf(largest, s[u]);
      }
      partials[row].rescale(largest);
#pragma unroll
      for (int u = 0; u < kUnrolled; ++u) {
        const float p = simt::exp2_fast(s[u] - largest);
        partials[row].sum += p;
#pragma unroll
        for (int i = 0; i < kChannels; ++i) partials[row].out[i] += p * values[u].get(i);
      }
    }
  }

  // Add up the lanes of a warp that hold the same channels, then the warps.
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
#pragma unroll
    for (int offset = 16; offset >= kLanes; offset /= 2) partials[row].add_lane(offset);
    if (lane < kLanes) {
#pragma unroll
      for (int i = 0; i < kChannels; ++i) shared.outs[warp][row][i][lane] = partials[row].out[i];
    }
    if (lane == 0) {
      shared.largest[warp][row] = partials[row].largest;
      shared.sums[warp][row] = partials[row].sum;
    }
  }
  __syncthreads();
  for (int index = static_cast<int>(threadIdx.x); index < kRows * kChannels * kLanes; index += kThreads) {
    const int row = index / (kChannels * kLanes), channel = index % (kChannels * kLanes);
    if (!simt::in_bounds(row_tile * kRows + row < rows && channel < D)) continue;
    // Where Channels keeps the channel: number i of lane pack % kLanes.
    const int pack = channel / kPack<T>;
    const int i = pack / kLanes * kPack<T> + channel % kPack<T>;
    float largest = kNoScore, sum = 0, out = 0;
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, shared.largest[w][row]);
    for (int w = 0; w < kWarps; ++w) {
      const float factor = simt::exp2_fast(shared.largest[w][row] - largest);
      sum += factor * shared.sums[w][row];
      out += factor * shared.outs[w][row][i][pack % kLanes];
    }
    const int64_t of_row = (batch * heads.tokens + token_of(row)) * heads.heads + head_of(row);
    if (filled == 1) {
      out_rows[of_row * D + channel] = simt::stored<T>(out / sum);
      continue;
    }
    const int64_t at = of_row * splits + split;
    outs[at * D + channel] = out;
    if (channel == 0) {
      stats[2 * at] = largest;
      stats[2 * at + 1] = sum;
    }
  }
  if (filled == 1 || !simt::arrives_last(counters + blockIdx.x, static_cast<uint32_t>(filled))) return;
  for (int index = static_cast<int>(threadIdx.x); index < kRows * D; index += kThreads) {
    const int row = index / D, channel = index % D;
    if (!simt::in_bounds(row_tile * kRows + row < rows)) continue;
    const int64_t of_row = (batch * heads.tokens + token_of(row)) * heads.heads + head_of(row);
    float largest = kNoScore, sum = 0, total = 0;
    for (int s = 0; s < filled; ++s) largest = fmaxf(largest, stats[2 * (of_row * splits + s)]);
#pragma unroll 4
    for (int s = 0; s < filled; ++s) {
      const float factor = simt::exp2_fast(stats[2 * (of_row * splits + s)] - largest);
      sum += factor * stats[2 * (of_row * splits + s) + 1];
      total += factor * outs[(of_row * splits + s) * D + channel];
    }
    out_rows[of_row * D + channel] = simt::stored<T>(total / sum);
  }
}

template <class T, int kRows, int kLanes>
void decode(const KernelCall& call) {
  const AttentionShape s = attention_shape(call, 0);
  const PackedHeads heads(s);
  const int64_t capacity = call.in_shape(1)[1], splits = attention_cached_splits(s, capacity);
  const int64_t row_tiles = (heads.group() * s.tokens + kRows - 1) / kRows, rows = s.batch * s.tokens * s.heads;
  const T* qkv = call.in<T>(0);
  T *key_cache = call.out<T>(1), *value_cache = call.out<T>(2);
  auto* outs = call.workspace();
  auto* stats = outs + rows * splits * s.head_size;
  const bool packed =
      simt::packs(qkv, s.head_size) && simt::packs(key_cache, s.head_size) && simt::packs(value_cache, s.head_size);
  const dim3 grid(static_cast<unsigned>(s.batch * s.kv_heads * row_tiles), static_cast<unsigned>(splits));
  if (s.batch * s.kv_heads * row_tiles > kCudaCounters)
    fail("attention_cached: ", s.batch, " x ", s.tokens, " new tokens are too many for the CUDA kernel");
  simt::launch_early(call.cuda->stream(), grid, dim3(kThreads<kRows>), sizeof(Shared<T, kRows, kLanes>),
                     decode_kernel<T, kRows, kLanes>, heads, heads.scale(), packed, capacity, call.device_step, qkv,
                     key_cache, value_cache, outs, stats, call.out<T>(0), call.cuda->counters());
}

template <class T, int kRows>
void decode_rows(const KernelCall& call) {
  const int64_t head_size = attention_shape(call, 0).head_size;
  if (head_size <= 8 * kChannels) return decode<T, kRows, 8>(call);
  if (head_size <= 16 * kChannels) return decode<T, kRows, 16>(call);
  return decode<T, kRows, 32>(call);
}

template <class T>
void decode_type(const KernelCall& call) {
  switch (attention_cached_rows(attention_shape(call, 0))) {
    case 1: return decode_rows<T, 1>(call);
    case 4: return decode_rows<T, 4>(call);
    default: return decode_rows<T, 8>(call);
  }
}

}  // namespace

void attention_cached(const KernelCall& call) {
  const AttentionShape s = attention_shape(call, 0);
  if (s.head_size > 32 * kChannels)
    fail("attention_cached: the CUDA kernels have head sizes up to ", 32 * kChannels, ", not ", s.head_size);
  if (s.batch * s.tokens == 0) return;
  call.in_dtype(0) == DType::bf16 ? decode_type<bf16>(call) : decode_type<float>(call);
}

}  // namespace llm::cuda
