// attention_paged on the GPU: what it computes is in attention_paged.cpp. The time goes into reading keys and values.
//
// The first kernel writes the keys and values of all new tokens to their blocks. In the second one a block of threads
// takes a token, a key-value head and up to kRows query heads of its group, and goes through parts of kPagedPartKeysCuda
// keys (Flash-Decoding, Dao et al. 2023). kLanes lanes share a key, 8 channels each, and keep a running softmax (Milakov
// and Gimelshein 2018) of the keys that they see; at the end of a part the block adds these up. Parts are added up in
// their order, by the same multiply-adds wherever that happens: with many tokens the block does it as it goes; with few
// tokens each part has a block of its own, which leaves it in the workspace, and the last block adds up. So a token's
// bits depend on its sequence alone. A launch must serve every position, so the grid is as large as full tables need,
// and blocks without keys end at once.
// Bytes: queries once, keys and values up to the position once for kRows query heads of each token.
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

constexpr int kChannels = 8;  // of a lane
constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kPartKeys = static_cast<int>(kPagedPartKeysCuda);
constexpr int kMostSplits = 64;     // blocks that share the parts of a token
constexpr float kNoScore = -1e30f;  // less than any score, but finite, so that a difference of two is not NaN

// Where everything lies.
struct Pages {
  int rows, heads, kv_heads, head_size, block, columns;  // R, H, K, D, P, M
  const int32_t *positions, *slots, *tables;

  __device__ int64_t width() const { return int64_t{heads + 2 * kv_heads} * head_size; }
  __device__ int group() const { return heads / kv_heads; }
  __device__ int64_t place(int row, int key, int kv_head) const {
    const int64_t in_block = tables[int64_t{slots[row]} * columns + key / block];
    return ((in_block * kv_heads + kv_head) * block + key % block) * head_size;
  }
};

// A block of threads takes a row.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) append_kernel(Pages p, const T* qkv, T* keys, T* values) {
  using Wide = Pack<T, kWidth>;
  simt::let_next_start();
  simt::wait_for_inputs();
  const int row = static_cast<int>(blockIdx.x), position = p.positions[row], packs = p.head_size / kWidth;
  if (position < 0) return;
  const T* const from = qkv + row * p.width() + int64_t{p.heads} * p.head_size;
  for (int i = static_cast<int>(threadIdx.x); i < p.kv_heads * packs; i += kThreads) {
    const int head = i / packs, channel = i % packs * kWidth;
    const int64_t to = p.place(row, position, head) + channel, at = int64_t{head} * p.head_size + channel;
    *reinterpret_cast<Wide*>(keys + to) = *reinterpret_cast<const Wide*>(from + at);
    *reinterpret_cast<Wide*>(values + to) =
        *reinterpret_cast<const Wide*>(from + int64_t{p.kv_heads} * p.head_size + at);
  }
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
};

// A running softmax of one query head, over the keys seen: the largest score, the sum of 2^(score - largest), and the
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

// One channel of the softmax over some parts. The rounding of each step is written out, since the bits must not depend
// on where the compiler joins a product and an addition.
struct Whole {
  float largest = kNoScore, sum = 0, out = 0;

  __device__ void add(const Whole& next) {
    const float top = fmaxf(largest, next.largest);
    const float mine = simt::exp2_fast(largest - top), its = simt::exp2_fast(next.largest - top);
    largest = top;
    sum = __fmaf_rn(next.sum, its, __fmul_rn(sum, mine));
    out = __fmaf_rn(next.out, its, __fmul_rn(out, mine));
  }
};

template <class T, int kRows, int kLanes>
struct Shared {
  // The padding puts neighbouring channels, which lie rows of kLanes + kPadding floats apart, into different banks.
  static constexpr int kPadding = kPack<T> == 8 ? 4 : kLanes == 8 ? 0 : 8;
  float outs[kWarps][kRows][kChannels][kLanes + kPadding];
  float largest[kWarps][kRows], sums[kWarps][kRows];
};

// qkv (1, R, (H + 2 K) D), blocks (N, K, P, D) -> out_rows (1, R, H D). Through parts (R, H, columns P / kPartKeys
// rounded up, D + 2) blocks pass on what they found: channels, largest score, sum. Grid (R K tiles of query heads,
// splits), a counter for each x.
template <class T, int kRows, int kLanes>
__global__ void __launch_bounds__(kThreads)
    paged_kernel(Pages p, float scale, bool packed, int most_parts, const T* qkv, const T* keys, const T* values,
                 float* parts, T* out_rows, uint32_t* counters) {
  constexpr int kKeysAtOnce = kThreads / kLanes;  // of the block
  constexpr int kUnrolled = kRows == 8 ? 2 : 4;   // keys of a group of lanes that are loaded at a time
  // Values of the block's query heads that a thread finishes: number n is thread + n kThreads.
  constexpr int kOwn = (kRows * kChannels * kLanes + kThreads - 1) / kThreads;
  auto& shared = simt::shared_memory<Shared<T, kRows, kLanes>>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int group = p.group(), D = p.head_size, row_tiles = (group + kRows - 1) / kRows;
  const int row_tile = static_cast<int>(blockIdx.x) % row_tiles;
  const int kv_head = static_cast<int>(blockIdx.x) / row_tiles % p.kv_heads;
  const int row = static_cast<int>(blockIdx.x) / row_tiles / p.kv_heads;
  const int first_head = kv_head * group + row_tile * kRows, heads = min(kRows, group - row_tile * kRows);
  const int split = static_cast<int>(blockIdx.y), splits = static_cast<int>(gridDim.y);
  simt::let_next_start();
  simt::wait_for_inputs();
  const int position = p.positions[row], filled = (position + kPartKeys) / kPartKeys;  // parts with keys
  if (split > 0 && split >= filled) return;
  T* const out = out_rows + (int64_t{row} * p.heads + first_head) * D;
  if (position < 0) {
    for (int i = thread; i < heads * D; i += kThreads) out[i] = simt::stored<T>(0);
    return;
  }

  float queries[kRows][kChannels];  // multiplied by the scale and log2(e), for exponentials of base 2
#pragma unroll
  for (int h = 0; h < kRows; ++h) {
    Channels<T, kLanes> query;
    query.load(qkv + row * p.width() + int64_t{first_head + min(h, heads - 1)} * D, D, packed);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) queries[h][i] = query.get(i) * (scale * 1.4426950408889634f);
  }

  const bool alone = splits == 1 || filled == 1;  // no other block has parts of this token
  Whole whole[kOwn];
  for (int part = split; part < filled; part += splits) {
    const int begin = part * kPartKeys, end = min(begin + kPartKeys, position + 1);
    Partial partials[kRows];
    for (int base = begin; base < end; base += kKeysAtOnce * kUnrolled) {
      Channels<T, kLanes> key_rows[kUnrolled], value_rows[kUnrolled];
#pragma unroll
      for (int u = 0; u < kUnrolled; ++u) {
        const int64_t at = p.place(row, min(base + u * kKeysAtOnce + thread / kLanes, end - 1), kv_head);
        key_rows[u].load(keys + at, D, packed);
        value_rows[u].load(values + at, D, packed);
      }
#pragma unroll
      for (int h = 0; h < kRows; ++h) {
        float s[kUnrolled], largest = partials[h].largest;
#pragma unroll
        for (int u = 0; u < kUnrolled; ++u) {
          s[u] = 0;
#pragma unroll
          for (int i = 0; i < kChannels; ++i) s[u] += queries[h][i] * key_rows[u].get(i);
#pragma unroll
          for (int offset = kLanes / 2; offset > 0; offset /= 2) s[u] += __shfl_xor_sync(kWholeWarp, s[u], offset);
          if (base + u * kKeysAtOnce + thread / kLanes >= end) s[u] = -INFINITY;
          largest = fmaxf(largest, s[u]);
        }
        partials[h].rescale(largest);
#pragma unroll
        for (int u = 0; u < kUnrolled; ++u) {
          const float weight = simt::exp2_fast(s[u] - largest);
          partials[h].sum += weight;
#pragma unroll
          for (int i = 0; i < kChannels; ++i) partials[h].out[i] += weight * value_rows[u].get(i);
        }
      }
    }

    // Add up the lanes of a warp that hold the same channels, then the warps.
    if (part != split) __syncthreads();  // the part before has been read
#pragma unroll
    for (int h = 0; h < kRows; ++h) {
#pragma unroll
      for (int offset = 16; offset >= kLanes; offset /= 2) partials[h].add_lane(offset);
      if (lane < kLanes) {
#pragma unroll
        for (int i = 0; i < kChannels; ++i) shared.outs[warp][h][i][lane] = partials[h].out[i];
      }
      if (lane == 0) {
        shared.largest[warp][h] = partials[h].largest;
        shared.sums[warp][h] = partials[h].sum;
      }
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kOwn; ++n) {
      const int index = thread + n * kThreads, h = index / (kChannels * kLanes), channel = index % (kChannels * kLanes);
      if (!simt::in_bounds(h < heads && channel < D)) continue;
      // Where Channels keeps the channel: number i of lane pack % kLanes.
      const int pack = channel / kPack<T>, i = pack / kLanes * kPack<T> + channel % kPack<T>;
      Whole of_part;
      for (int w = 0; w < kWarps; ++w) of_part.largest = fmaxf(of_part.largest, shared.largest[w][h]);
      for (int w = 0; w < kWarps; ++w) {
        const float factor = simt::exp2_fast(shared.largest[w][h] - of_part.largest);
        of_part.sum += factor * shared.sums[w][h];
        of_part.out += factor * shared.outs[w][h][i][pack % kLanes];
      }
      if (alone) {
        whole[n].add(of_part);
        continue;
      }
      float* const to = parts + ((int64_t{row} * p.heads + first_head + h) * most_parts + part) * (D + 2);
      to[channel] = of_part.out;
      if (channel == 0) to[D] = of_part.largest, to[D + 1] = of_part.sum;
    }
  }
  if (!alone && !simt::arrives_last(counters + blockIdx.x, static_cast<uint32_t>(min(filled, splits)))) return;
#pragma unroll
  for (int n = 0; n < kOwn; ++n) {
    const int index = thread + n * kThreads, h = index / (kChannels * kLanes), channel = index % (kChannels * kLanes);
    if (!simt::in_bounds(h < heads && channel < D)) continue;
    if (!alone) {
      const float* from = parts + (int64_t{row} * p.heads + first_head + h) * most_parts * (D + 2);
      for (int part = 0; part < filled; ++part, from += D + 2) whole[n].add({from[D], from[D + 1], from[channel]});
    }
    out[int64_t{h} * D + channel] = simt::stored<T>(whole[n].out / whole[n].sum);
  }
}

template <class T>
struct Call {
  const KernelCall& call;
  Pages pages;
  const T* qkv;
  T *keys, *values;

  explicit Call(const KernelCall& c) : call(c), qkv(c.in<T>(0)), keys(c.out<T>(1)), values(c.out<T>(2)) {
    const Attributes& a = c.node.attributes;
    pages = {.rows = static_cast<int>(c.in_shape(0)[1]),
             .heads = static_cast<int>(a.integer("heads")),
             .kv_heads = static_cast<int>(a.integer("kv_heads")),
             .head_size = static_cast<int>(a.integer("head_size")),
             .block = static_cast<int>(c.in_shape(1)[2]),
             .columns = static_cast<int>(c.in_shape(5)[1]),
             .positions = c.in_int(3),
             .slots = c.in_int(4),
             .tables = c.in_int(5)};
  }
  bool packed() const {
    return simt::packs(qkv, pages.head_size) && simt::packs(keys, pages.head_size) &&
           simt::packs(values, pages.head_size);
  }

  void append() const {
    simt::launch_early(call.cuda->stream(), dim3(static_cast<unsigned>(pages.rows)), dim3(kThreads), 0,
                       packed() ? append_kernel<T, kPack<T>> : append_kernel<T, 1>, pages, qkv, keys, values);
  }

  template <int kRows, int kLanes>
  void attend() const {
    const int group = pages.heads / pages.kv_heads,
              blocks = pages.rows * pages.kv_heads * ((group + kRows - 1) / kRows);
    const int most_parts = (pages.columns * pages.block + kPartKeys - 1) / kPartKeys;
    const int splits = pages.rows <= kPagedFewRows ? std::min(most_parts, kMostSplits) : 1;
    if (splits > 1 && blocks > kCudaCounters)
      fail("attention_paged: ", pages.rows, " new tokens are too many for the CUDA kernel");
    const float scale = 1 / std::sqrt(static_cast<float>(pages.head_size));
    simt::launch_early(call.cuda->stream(), dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(splits)),
                       dim3(kThreads), sizeof(Shared<T, kRows, kLanes>), paged_kernel<T, kRows, kLanes>, pages, scale,
                       packed(), most_parts, qkv, static_cast<const T*>(keys), static_cast<const T*>(values),
                       call.workspace(), call.out<T>(0), call.cuda->counters());
  }
  template <int kRows>
  void attend_rows() const {
    if (pages.head_size <= 8 * kChannels) return attend<kRows, 8>();
    if (pages.head_size <= 16 * kChannels) return attend<kRows, 16>();
    attend<std::min(kRows, 4), 32>();  // for 8 heads as large as these the registers do not suffice
  }
  void run() const {
    append();
    const int group = pages.heads / pages.kv_heads;
    group == 1 ? attend_rows<1>() : group <= 4 ? attend_rows<4>() : attend_rows<8>();
  }
};

}  // namespace

void attention_paged(const KernelCall& call) {
  if (const int64_t D = call.node.attributes.integer("head_size"); D > 32 * kChannels)
    fail("attention_paged: the CUDA kernels have head sizes up to ", 32 * kChannels, ", not ", D);
  call.in_dtype(0) == DType::bf16 ? Call<bf16>(call).run() : Call<float>(call).run();
}

}  // namespace llm::cuda
