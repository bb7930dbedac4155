// Causal attention of bf16 on the tensor cores, forward: FlashAttention-2 (Dao 2023, algorithm 1).
//
// A block of four warps owns a tile of queries of one head, of which each warp has 16 kRowTiles rows. The block goes
// through the keys from the first to the diagonal, kKeys at a time. Shared memory has two stages of keys and values:
// while one is used, the next is copied in the background. Each row has a running softmax (Milakov and Gimelshein 2018)
// in registers; scores become the left operand of the next product without leaving the registers. Tiles above the
// diagonal are skipped, and only tiles that the diagonal crosses are masked. The blocks with the most keys start first.
// Bytes: queries and outputs once; keys and values once for each tile of queries, from the L2 cache after the first
// time.
#include "llm/device/cuda.h"
#include "llm/graph/kernel.h"
#include "llm/ops/attention_cuda.h"
#include "llm/ops/flash_attention_cuda.h"
#include "llm/ops/largest_cuda.h"

namespace llm::cuda {
namespace {

using namespace flash;

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;

template <int kQueries, int kKeys, int kHead>
struct Shared {
  Tile<kQueries, kHead> queries;
  Tile<kKeys, kHead> keys[2], values[2];
};

// The running softmax of a warp's rows.
template <int M>
struct RunningSoftmax {
  float largest[M][2], sum[M][2];  // of the raw scores; of the exponentials of this lane's columns alone

  __device__ RunningSoftmax() {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) largest[m][half] = -INFINITY, sum[m][half] = 0;
  }

  // The value to subtract from scores. In a row with nothing but masked scores the largest score is -infinity, of which
  // differences would be NaN, so 0 takes its place.
  template <bool kMayBeEmpty>
  __device__ static float shift_of(float largest) {
    return kMayBeEmpty && largest == -INFINITY ? 0 : largest;
  }

  // Scores become 2^(scale (score - largest)); earlier sums and outputs are rescaled to the new largest scores. Unless
  // kMayBeEmpty, each row must have had a score that is not masked.
  template <bool kMayBeEmpty, int N, int kColumns>
  __device__ void add(float (&s)[M][N][4], float (&out)[M][kColumns][4], float scale) {
    float correction[M][2];
    bool changed = false;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float now = largest[m][half];
#pragma unroll
        for (int n = 0; n < N; ++n) now = fmaxf(now, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
        now = group_max(now);
        changed = changed || now != largest[m][half];
        correction[m][half] = simt::exp2_fast((largest[m][half] - shift_of<kMayBeEmpty>(now)) * scale);
        largest[m][half] = now;
      }
    if (__any_sync(simt::kWholeWarp, changed)) {
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          sum[m][half] *= correction[m][half];
#pragma unroll
          for (int n = 0; n < kColumns; ++n) {
            out[m][n][2 * half] *= correction[m][half];
            out[m][n][2 * half + 1] *= correction[m][half];
          }
        }
    }
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float offset = shift_of<kMayBeEmpty>(largest[m][half]) * scale;
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            s[m][n][i] = simt::exp2_fast(s[m][n][i] * scale - offset);
            sum[m][half] += s[m][n][i];
          }
      }
  }
};

// The tensors of queries q and of keys and values kv (AttentionHeads), starts (B, T) -> out (B, T, H D), log_sum_exp
// (B, H, T). Grid (B H, tiles of queries). With kDocuments a query sees no key before its start; without it `starts` is
// not used.
template <int kHead, int kRowTiles, int kKeys, bool kHeldQueries, bool kDocuments>
__global__ void __launch_bounds__(kThreads)
    flash_attention_kernel(AttentionHeads heads, float scale, float scale_to_base_2, const bf16* __restrict__ q,
                           const bf16* __restrict__ kv, const int32_t* __restrict__ starts, bf16* __restrict__ out,
                           float* __restrict__ log_sum_exp, uint32_t* largest) {
  constexpr int kQueries = 16 * kRowTiles * kWarps;
  auto& shared = simt::shared_memory<Shared<kQueries, kKeys, kHead>>();
  const int head = static_cast<int>(blockIdx.x) % heads.heads, kv_head = head / heads.group();
  const int batch = static_cast<int>(blockIdx.x) / heads.heads;
  const QueryTile tile = heads.tile(static_cast<int>(gridDim.y - 1 - blockIdx.y), kQueries);
  const int first_query = tile.position;
  const int warp_row = 16 * kRowTiles * warp(), warp_query = first_query + warp_row;
  const int width = static_cast<int>(heads.key_width());
  const int first_row = batch * heads.tokens + tile.row, end_row = batch * heads.tokens + tile.end_row;  // among B T
  const int first_token = batch * heads.keys, end_token = first_token + heads.keys;  // of the sequence among B T' rows

  const auto copy_keys_and_values = [&](int stage, int first_key) {
    copy_tile_async<kThreads>(shared.keys[stage], kv + heads.key(kv_head), width, first_token + first_key, end_token);
    copy_tile_async<kThreads>(shared.values[stage], kv + heads.value(kv_head), width, first_token + first_key,
                              end_token);
    simt::copy_commit();
  };
  const DocumentStarts<kDocuments> documents(starts, batch, heads.tokens, tile);
  const int begin_key = documents.of(first_query) / kKeys * kKeys;
  copy_tile_async<kThreads>(shared.queries, q + heads.query(head), static_cast<int>(heads.query_width()), first_row,
                            end_row);
  copy_keys_and_values(0, begin_key);

  simt::copy_wait<0>();
  __syncthreads();
  RowOperand<kRowTiles, kQueries, kHead, kHeldQueries> queries(shared.queries, warp_row);
  RunningSoftmax<kRowTiles> softmax;
  float accumulated[kRowTiles][kHead / 8][4] = {};
  const int end_key = tile.end_key(kQueries, heads.keys);
  for (int first_key = begin_key, stage = 0; first_key < end_key; first_key += kKeys, stage ^= 1) {
    simt::copy_wait<0>();
    __syncthreads();
    if (first_key + kKeys < end_key) copy_keys_and_values(stage ^ 1, first_key + kKeys);
    if (first_key >= warp_query + 16 * kRowTiles) continue;  // above the diagonal
    // Keys of earlier documents alone are skipped. (With heads of 128 no register is left for this test.)
    if (kHead < 128 && first_key + kKeys <= documents.of(warp_query)) continue;
    float s[kRowTiles][kKeys / 8][4];
    multiply_transposed(s, queries, shared.keys[stage], 0);
    if (first_key + kKeys > min(warp_query + 1, heads.keys))
      mask_later_keys<false>(s, warp_query, first_key, heads.keys);
    if constexpr (kDocuments)
      if (first_key < documents.last_before(warp_query + 16 * kRowTiles))
        mask_earlier_documents<false>(s, warp_query, first_key, documents);
    softmax.template add<kDocuments>(s, accumulated, scale_to_base_2);
    multiply(accumulated, s, shared.values[stage], 0);
  }

  float factor[kRowTiles][2];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = tile.row + warp_row + 16 * m + 8 * half + group();  // its number
      const float total = group_sum(softmax.sum[m][half]);
      factor[m][half] = kDocuments && total == 0 ? 0 : 1 / total;
      if (simt::in_bounds(query < tile.end_row) && member() == 0)
        log_sum_exp[int64_t{blockIdx.x} * heads.tokens + query] = softmax.largest[m][half] * scale + logf(total);
    }
  const float most = store_rows(shared.queries, warp_row, accumulated, factor, out + heads.query(head),
                                heads.out_width(), first_row + warp_row, end_row);
  note_largest_over(most, largest, shared);
}

template <int kHead, int kRowTiles, int kKeys, bool kHeldQueries>
void forward(const KernelCall& call) {
  const AttentionShape s = attention_shape(call, 0);
  const AttentionHeads heads(s);
  constexpr int kQueries = 16 * kRowTiles * kWarps;
  const dim3 grid(static_cast<unsigned>(s.batch * s.heads), static_cast<unsigned>(heads.tiles(kQueries)));
  simt::launch(call.cuda->stream(), grid, dim3(kThreads), sizeof(Shared<kQueries, kKeys, kHead>),
               call.has_input(1) ? flash_attention_kernel<kHead, kRowTiles, kKeys, kHeldQueries, true>
                                 : flash_attention_kernel<kHead, kRowTiles, kKeys, kHeldQueries, false>,
               heads, heads.scale(), heads.scale() * kLog2E, call.in<bf16>(0), call.in<bf16>(s.keys ? 2 : 0),
               call.in_int(1), call.out<bf16>(0), call.out(1), largest_of(call));
}

}  // namespace

bool has_flash_attention(int64_t head_size) {
  return head_size == 32 || head_size == 64 || head_size == 96 || head_size == 128;
}

void flash_attention(const KernelCall& call) {
  switch (attention_shape(call, 0).head_size) {
    case 32: return forward<32, 2, 64, true>(call);
    case 64: return forward<64, 2, 64, true>(call);
    case 96: return forward<96, 2, 64, false>(call);
    default: return forward<128, 2, 32, false>(call);
  }
}

}  // namespace llm::cuda
