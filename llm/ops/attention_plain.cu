// Causal attention in fp32 arithmetic, forward, for fp32 runs and for head sizes that flash_attention.cu doesn't have.
//
// The algorithm is FlashAttention-2's (Dao 2023): a block owns a tile of queries of one head and goes through the keys tile
// by tile up to the diagonal, with a running softmax (Milakov and Gimelshein 2018) per row. The longest blocks start first.
// Bytes: queries and outputs once; keys and values once for each tile of queries, from the L2 cache after the first.
#include "llm/device/cuda.h"
#include "llm/graph/kernel.h"
#include "llm/ops/attention_cuda.h"
#include "llm/ops/attention_plain_cuda.h"
#include "llm/ops/largest_cuda.h"

namespace llm::cuda {
namespace {

using namespace plain;

template <int kTile, int kHead>
struct ForwardShared {
  HeadTile<kTile, kHead> queries, keys_then_values;
  ScoreTile<kTile> p;
};

// The tensors of queries q and of keys and values kv (AttentionHeads), starts (B, T) -> out (B, T, H D), log_sum_exp
// (B, H, T). Grid (B H, tiles of queries, the longest first). kDocuments: a query sees no key before its start;
// otherwise `starts` is not used.
template <class T, int kTile, int kHead, bool kDocuments>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(AttentionHeads heads, float scale, bool packed, const T* __restrict__ q, const T* __restrict__ kv,
                   const int32_t* __restrict__ starts, T* __restrict__ out, float* __restrict__ log_sum_exp,
                   uint32_t* largest_out) {
  constexpr int kRows = kTile / kSide;
  auto& shared = simt::shared_memory<ForwardShared<kTile, kHead>>();
  const int head = static_cast<int>(blockIdx.x) % heads.heads, kv_head = head / heads.group();
  const int64_t batch = static_cast<int>(blockIdx.x) / heads.heads;
  const QueryTile tile = heads.tile(static_cast<int>(gridDim.y - 1 - blockIdx.y), kTile);
  const auto [first_row, first_query, end_row] = tile;
  const int end_key = tile.end_key(kTile, heads.keys);
  const T* const keys = kv + batch * heads.keys * heads.key_width();
  const int x = thread_x(), y = thread_y();

  load_tile<T, kTile, kHead>(shared.queries, q + batch * heads.tokens * heads.query_width() + heads.query(head),
                             heads.query_width(), first_row, end_row, heads.head_size, packed);
  float largest[kRows], sum[kRows], accumulated[kRows][kHead / kSide] = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) largest[i] = -INFINITY, sum[i] = 0;
  const DocumentStarts<kDocuments> documents(starts, batch, heads.tokens, tile);
  int row_start[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) row_start[i] = documents.of(first_query + y + kSide * i);

  for (int first_key = documents.of(first_query) / kTile * kTile; first_key < end_key; first_key += kTile) {
    __syncthreads();
    load_tile<T, kTile, kHead>(shared.keys_then_values, keys + heads.key(kv_head), heads.key_width(), first_key,
                               heads.keys, heads.head_size, packed);
    __syncthreads();
    float s[kRows][kRows];
    score_product<kTile, kHead>(s, shared.queries, shared.keys_then_values);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float row_largest = largest[i];
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const int key = first_key + x + kSide * j;
        const bool seen =
            key <= first_query + y + kSide * i && key < heads.keys && (!kDocuments || key >= row_start[i]);
        s[i][j] = seen ? s[i][j] * scale : -INFINITY;
        row_largest = fmaxf(row_largest, s[i][j]);
      }
      row_largest = max_over_x(row_largest);                                         // finite: key 0 is seen by all, or
      const float shift = kDocuments && row_largest == -INFINITY ? 0 : row_largest;  // the document has not begun
      const float correction = expf(largest[i] - shift);
      largest[i] = row_largest;
      sum[i] *= correction;
#pragma unroll
      for (int c = 0; c < kHead / kSide; ++c) accumulated[i][c] *= correction;
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        s[i][j] = expf(s[i][j] - shift);
        sum[i] += s[i][j];
      }
    }
    store_scores<kTile>(shared.p, s);
    __syncthreads();
    load_tile<T, kTile, kHead>(shared.keys_then_values, keys + heads.value(kv_head), heads.key_width(), first_key,
                               heads.keys, heads.head_size, packed);
    __syncthreads();
    output_product<kTile, kHead>(accumulated, shared.p, shared.keys_then_values);
  }
  float most = 0;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int query = first_row + y + kSide * i;  // its number
    const float total = sum_over_x(sum[i]);
    if (simt::in_bounds(query < end_row)) {
      T* const row = out + (batch * heads.tokens + query) * heads.out_width() + heads.query(head);
      most = fmaxf(most, store_row<T>(row, accumulated[i], total > 0 ? 1 / total : 0, heads.head_size, packed));
      if (x == 0) log_sum_exp[int64_t{blockIdx.x} * heads.tokens + query] = largest[i] + logf(total);
    }
  }
  note_largest_over(most, largest_out, shared);
}

template <class T, int kTile, int kHead>
void forward(const KernelCall& call) {
  const AttentionShape s = attention_shape(call, 0);
  const AttentionHeads heads(s);
  const T *queries = call.in<T>(0), *keys = s.keys ? call.in<T>(2) : queries;
  T* out = call.out<T>(0);
  const bool packed =
      simt::packs(queries, s.head_size) && simt::packs(keys, s.head_size) && simt::packs(out, s.head_size);
  simt::launch(call.cuda->stream(), grid_of(s.batch * s.heads, heads.tiles(kTile)), dim3(kThreads),
               sizeof(ForwardShared<kTile, kHead>),
               call.has_input(1) ? forward_kernel<T, kTile, kHead, true> : forward_kernel<T, kTile, kHead, false>,
               heads, heads.scale(), packed, queries, keys, call.in_int(1), out, call.out(1), largest_of(call));
}

}  // namespace

void attention_plain(const KernelCall& call) {
  with_tiles<64, 64, 32>(call, 0, [&]<class T, int kTile, int kHead>() { forward<T, kTile, kHead>(call); });
}

}  // namespace llm::cuda
