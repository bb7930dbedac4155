// Causal attention in fp32 arithmetic, backward, for fp32 runs and for head sizes that flash_attention_backward.cu doesn't have.
//
// Two kernels, so that each gradient has one writer and one order of sums: the first owns tiles of queries and goes through
// the keys for dQ, and leaves delta = rowsum(d_out * out) for the second, which owns tiles of keys and goes through the
// queries for dK and dV (Dao 2023, algorithm 2). Scores are made again in both.
// Bytes: each block reads its own side once, and the other side's tiles, from the L2 cache after the first block.
#include "llm/device/cuda.h"
#include "llm/graph/kernel.h"
#include "llm/ops/attention_cuda.h"
#include "llm/ops/attention_plain_cuda.h"
#include "llm/ops/largest_cuda.h"

namespace llm::cuda {
namespace {

using namespace plain;

template <int kTile, int kHead>
struct BackwardShared {
  HeadTile<kTile, kHead> queries, d_outs, keys, values;
  ScoreTile<kTile> p;
};

// d_out, out (B, T, H D), q and kv (AttentionHeads), log_sum_exp (B, H, T), starts (B, T) -> the query heads of d_q,
// delta (B, H, T). Grid and kDocuments as the forward kernel's.
template <class T, int kTile, int kHead, bool kDocuments>
__global__ void __launch_bounds__(kThreads)
    query_gradient_kernel(AttentionHeads heads, float scale, bool packed, const T* __restrict__ d_out,
                          const T* __restrict__ q, const T* __restrict__ kv, const T* __restrict__ out,
                          const float* __restrict__ log_sum_exp, const int32_t* __restrict__ starts,
                          T* __restrict__ d_q, float* __restrict__ delta, uint32_t* largest) {
  constexpr int kRows = kTile / kSide;
  auto& shared = simt::shared_memory<BackwardShared<kTile, kHead>>();
  const int head = static_cast<int>(blockIdx.x) % heads.heads, kv_head = head / heads.group();
  const int64_t batch = static_cast<int>(blockIdx.x) / heads.heads;
  const QueryTile tile = heads.tile(static_cast<int>(gridDim.y - 1 - blockIdx.y), kTile);
  const auto [first_row, first_query, end_row] = tile;
  const int end_key = tile.end_key(kTile, heads.keys);
  const T* const keys = kv + batch * heads.keys * heads.key_width();
  const int64_t of_out = batch * heads.tokens * heads.out_width() + heads.query(head);
  const int64_t of_statistic = int64_t{blockIdx.x} * heads.tokens;
  const int x = thread_x(), y = thread_y();

  load_tile<T, kTile, kHead>(shared.queries, q + batch * heads.tokens * heads.query_width() + heads.query(head),
                             heads.query_width(), first_row, end_row, heads.head_size, packed);
  load_tile<T, kTile, kHead>(shared.d_outs, d_out + of_out, heads.out_width(), first_row, end_row, heads.head_size,
                             packed);
  load_tile<T, kTile, kHead>(shared.keys, out + of_out, heads.out_width(), first_row, end_row, heads.head_size,
                             packed);  // out for a moment
  __syncthreads();
  float row_delta[kRows], row_log_sum_exp[kRows], gradient[kRows][kHead / kSide] = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = y + kSide * i, query = first_row + row;
    float partial = 0;
    for (int column = 4 * x; column < kHead; column += 4 * kSide) {
      const float4 d = *reinterpret_cast<const float4*>(&shared.d_outs[row][column]);
      const float4 o = *reinterpret_cast<const float4*>(&shared.keys[row][column]);
      partial += d.x * o.x + d.y * o.y + d.z * o.z + d.w * o.w;
    }
    row_delta[i] = sum_over_x(partial);
    row_log_sum_exp[i] = INFINITY;  // of rows that don't exist: probabilities 0
    if (simt::in_bounds(query < end_row)) {
      row_log_sum_exp[i] = log_sum_exp[of_statistic + query];
      if (x == 0) delta[of_statistic + query] = row_delta[i];
    }
  }

  const DocumentStarts<kDocuments> documents(starts, batch, heads.tokens, tile);
  int row_start[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) row_start[i] = documents.of(first_query + y + kSide * i);
  for (int first_key = documents.of(first_query) / kTile * kTile; first_key < end_key; first_key += kTile) {
    __syncthreads();
    load_tile<T, kTile, kHead>(shared.keys, keys + heads.key(kv_head), heads.key_width(), first_key, heads.keys,
                               heads.head_size, packed);
    load_tile<T, kTile, kHead>(shared.values, keys + heads.value(kv_head), heads.key_width(), first_key, heads.keys,
                               heads.head_size, packed);
    __syncthreads();
    float s[kRows][kRows], dp[kRows][kRows];
    score_product<kTile, kHead>(s, shared.queries, shared.keys);
    score_product<kTile, kHead>(dp, shared.d_outs, shared.values);
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const int key = first_key + x + kSide * j;
        const bool seen =
            key <= first_query + y + kSide * i && key < heads.keys && (!kDocuments || key >= row_start[i]);
        const float p = seen ? expf(s[i][j] * scale - row_log_sum_exp[i]) : 0;
        s[i][j] = p * (dp[i][j] - row_delta[i]);
      }
    store_scores<kTile>(shared.p, s);
    __syncthreads();
    output_product<kTile, kHead>(gradient, shared.p, shared.keys);
  }
  float most = 0;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int query = first_row + y + kSide * i;  // its number
    T* const row = d_q + (batch * heads.tokens + query) * heads.query_width() + heads.query(head);
    if (simt::in_bounds(query < end_row))
      most = fmaxf(most, store_row<T>(row, gradient[i], scale, heads.head_size, packed));
  }
  note_largest_over(most, largest, shared);
}

// d_out (B, T, H D), q and kv (AttentionHeads), log_sum_exp, delta (B, H, T), starts (B, T) -> the key and value heads
// of d_kv: sums over the group's query heads, in order. Grid (B K, tiles of keys, the longest first). Scores stand
// transposed: keys are the rows.
template <class T, int kTile, int kHead, bool kDocuments>
__global__ void __launch_bounds__(kThreads)
    key_value_gradient_kernel(AttentionHeads heads, float scale, bool packed, const T* __restrict__ d_out,
                              const T* __restrict__ q, const T* __restrict__ kv, const float* __restrict__ log_sum_exp,
                              const float* __restrict__ delta, const int32_t* __restrict__ starts, T* __restrict__ d_kv,
                              uint32_t* largest) {
  constexpr int kRows = kTile / kSide;
  auto& shared = simt::shared_memory<BackwardShared<kTile, kHead>>();
  const int kv_head = static_cast<int>(blockIdx.x) % heads.kv_heads;
  const int64_t batch = static_cast<int>(blockIdx.x) / heads.kv_heads;
  const int first_key = static_cast<int>(blockIdx.y) * kTile;
  const T* const keys = kv + batch * heads.keys * heads.key_width();
  const T* const queries = q + batch * heads.tokens * heads.query_width();
  const int x = thread_x(), y = thread_y();

  load_tile<T, kTile, kHead>(shared.keys, keys + heads.key(kv_head), heads.key_width(), first_key, heads.keys,
                             heads.head_size, packed);
  load_tile<T, kTile, kHead>(shared.values, keys + heads.value(kv_head), heads.key_width(), first_key, heads.keys,
                             heads.head_size, packed);
  float key_gradient[kRows][kHead / kSide] = {}, value_gradient[kRows][kHead / kSide] = {};

  for (int head = kv_head * heads.group(); head < (kv_head + 1) * heads.group(); ++head) {
    const T* const d_outs = d_out + batch * heads.tokens * heads.out_width() + heads.query(head);
    const int64_t of_statistic = (batch * heads.heads + head) * heads.tokens;
    for (int tile = heads.first_tile_seeing(first_key, kTile); tile < heads.tiles(kTile); ++tile) {
      const QueryTile other = heads.tile(tile, kTile);
      const auto [first_row, first_query, end_row] = other;
      const DocumentStarts<kDocuments> documents(starts, batch, heads.tokens, other);
      if (documents.of(first_query) >= first_key + kTile) break;  // this and all later documents begin behind the keys
      __syncthreads();
      load_tile<T, kTile, kHead>(shared.queries, queries + heads.query(head), heads.query_width(), first_row, end_row,
                                 heads.head_size, packed);
      load_tile<T, kTile, kHead>(shared.d_outs, d_outs, heads.out_width(), first_row, end_row, heads.head_size, packed);
      __syncthreads();
      float p[kRows][kRows], ds[kRows][kRows];
      score_product<kTile, kHead>(p, shared.keys, shared.queries);
      score_product<kTile, kHead>(ds, shared.values, shared.d_outs);
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const int query = first_query + x + kSide * j, row = first_row + x + kSide * j;
        float column_log_sum_exp = INFINITY, column_delta = 0;
        const int start = documents.of(query);
        if (simt::in_bounds(row < end_row)) {
          column_log_sum_exp = log_sum_exp[of_statistic + row];
          column_delta = delta[of_statistic + row];
        }
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const int key = first_key + y + kSide * i;
          const bool seen = key <= query && (!kDocuments || key >= start);
          p[i][j] = seen ? expf(p[i][j] * scale - column_log_sum_exp) : 0;
          ds[i][j] = p[i][j] * (ds[i][j] - column_delta);
        }
      }
      store_scores<kTile>(shared.p, p);
      __syncthreads();
      output_product<kTile, kHead>(value_gradient, shared.p, shared.d_outs);
      __syncthreads();
      store_scores<kTile>(shared.p, ds);
      __syncthreads();
      output_product<kTile, kHead>(key_gradient, shared.p, shared.queries);
    }
  }
  float most = 0;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int key = first_key + y + kSide * i;
    if (simt::in_bounds(key < heads.keys)) {
      T* const row = d_kv + (batch * heads.keys + key) * heads.key_width();
      most = fmaxf(most, store_row<T>(row + heads.key(kv_head), key_gradient[i], scale, heads.head_size, packed));
      most = fmaxf(most, store_row<T>(row + heads.value(kv_head), value_gradient[i], 1, heads.head_size, packed));
    }
  }
  note_largest_over(most, largest, shared);
}

template <class T, int kTile, int kHead, bool kDocuments>
void backward_of(const KernelCall& call) {
  const AttentionShape s = attention_shape(call, 1);
  const AttentionHeads heads(s);
  const T *d_out = call.in<T>(0), *q = call.in<T>(1), *out = call.in<T>(2), *kv = s.keys ? call.in<T>(5) : q;
  const float* log_sum_exp = call.in(3);
  const int32_t* starts = call.in_int(4);
  T *d_q = call.out<T>(0), *d_kv = s.keys ? call.out<T>(2) : d_q;
  auto* delta = call.workspace();
  uint32_t* largest = largest_of(call);  // in output 0
  const bool packed = simt::packs(d_out, s.head_size) && simt::packs(q, s.head_size) && simt::packs(kv, s.head_size) &&
                      simt::packs(out, s.head_size) && simt::packs(d_q, s.head_size) && simt::packs(d_kv, s.head_size);
  constexpr size_t kShared = sizeof(BackwardShared<kTile, kHead>);
  simt::launch(call.cuda->stream(), grid_of(s.batch * s.heads, heads.tiles(kTile)), dim3(kThreads), kShared,
               query_gradient_kernel<T, kTile, kHead, kDocuments>, heads, heads.scale(), packed, d_out, q, kv, out,
               log_sum_exp, starts, d_q, delta, largest);
  simt::launch(call.cuda->stream(), grid_of(s.batch * s.kv_heads, (s.key_rows() + kTile - 1) / kTile), dim3(kThreads),
               kShared, key_value_gradient_kernel<T, kTile, kHead, kDocuments>, heads, heads.scale(), packed, d_out, q,
               kv, log_sum_exp, delta, starts, d_kv, d_kv == d_q ? largest : nullptr);
}

}  // namespace

void attention_backward_plain(const KernelCall& call) {
  with_tiles<64, 32, 16>(call, 1, [&]<class T, int kTile, int kHead>() {
    call.has_input(4) ? backward_of<T, kTile, kHead, true>(call) : backward_of<T, kTile, kHead, false>(call);
  });
}

}  // namespace llm::cuda
