// Causal attention of bf16 on the tensor cores, backward: FlashAttention-2 (Dao 2023, algorithm 2) as two kernels.
//
// Each gradient has one writer and one order of sums, without atomics or partial sums in memory. The price is seven
// products of tiles instead of five, since both kernels compute the scores and dP. The alternative, to write dQ's parts
// for each tile of 128 keys and to add them later, would move 1 byte for 64 FLOPs saved, which takes longer than the
// FLOPs on any GPU with tensor cores.
//
// A block of the first kernel owns a tile of queries and goes through the keys up to the diagonal. It computes
// delta = rowsum(d_out * out), which it leaves for the second kernel, and dQ = scale dS K, where dS = P (dP - delta)
// and dP = d_out V^T. A block of the second kernel owns a tile of keys and goes through the queries from the diagonal
// on, of all heads that share the keys: dV = P^T d_out, dK = scale dS^T Q. The second kernel computes the scores
// transposed, with a row for each key, so that P^T and dS^T become left operands in the registers in which they are
// computed. In both kernels four warps share the own tile, each with 16 M rows; the tiles of the other side come in two
// stages, copied in the background, and are used kStep columns at a time.
// Bytes: each block reads its own tile once, and the other side's tiles, from the L2 cache after the first block.
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

// As much as fits into the registers for a head size: how many tiles of 16 rows a warp has, in the kernel for dQ and in
// the kernel for dK and dV, and whether the two left operands of the kernel for dQ stay in registers (kHeld).
template <int kHeadSize>
struct Tiling {
  static constexpr int kHead = kHeadSize;
  static constexpr int kQueryTiles = kHead <= 64 ? 2 : 1, kKeyTiles = kHead <= 64 ? 2 : 1;
  static constexpr bool kHeld = true;
  static constexpr int kStep = 32;
  static constexpr int kQueries = 16 * kQueryTiles * kWarps;  // of a block of the first kernel
  static constexpr int kKeys = 16 * kKeyTiles * kWarps;       // of a block of the second kernel
  static constexpr int kOthers = 64;                          // rows of a tile of the other side
};

template <class Tiling>
struct QueryShared {
  static constexpr int kHead = Tiling::kHead;
  struct Stage {
    Tile<Tiling::kOthers, kHead> keys, values;
  };
  Tile<Tiling::kQueries, kHead> queries, d_outs;
  Stage stages[2];

  // The outputs are needed only at the start, when the second stage is still unused.
  __device__ Tile<Tiling::kQueries, kHead>& outs() {
    static_assert(sizeof(Tile<Tiling::kQueries, kHead>) <= sizeof(Stage));
    void* stage = &stages[1];
    return *static_cast<Tile<Tiling::kQueries, kHead>*>(stage);
  }
};

// Adds to `sum` the dot products of the corresponding rows of two operands, over this lane's columns.
template <int M, class A, class B>
__device__ void row_products(float (&sum)[M][2], const A& a, const B& b, int columns) {
#pragma unroll
  for (int k = 0; k < columns / 16; ++k) {
    uint32_t x[M][4], y[M][4];
    a.get(x, k);
    b.get(y, k);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sum[m][i % 2] += float_of_bits(x[m][i] << 16) * float_of_bits(y[m][i] << 16) +
                         float_of_bits(x[m][i] & 0xffff0000) * float_of_bits(y[m][i] & 0xffff0000);
  }
}

// d_out, out (B, T, H D), q and kv (AttentionHeads), log_sum_exp (B, H, T), starts (B, T) -> the query heads of d_q,
// delta (B, H, T). Grid (B H, tiles of queries, those with the most keys first). kDocuments as in the forward kernel.
template <class Tiling, bool kDocuments>
__global__ void __launch_bounds__(kThreads, 1)
    flash_query_gradient_kernel(AttentionHeads heads, float scale, float scale_to_base_2,
                                const bf16* __restrict__ d_out, const bf16* __restrict__ q, const bf16* __restrict__ kv,
                                const bf16* __restrict__ out, const float* __restrict__ log_sum_exp,
                                const int32_t* __restrict__ starts, bf16* __restrict__ d_q, float* __restrict__ delta,
                                uint32_t* largest) {
  constexpr int M = Tiling::kQueryTiles, kHead = Tiling::kHead, kQueries = Tiling::kQueries, kKeys = Tiling::kOthers;
  constexpr int kStep = Tiling::kStep;
  auto& shared = simt::shared_memory<QueryShared<Tiling>>();
  const int head = static_cast<int>(blockIdx.x) % heads.heads, kv_head = head / heads.group();
  const int batch = static_cast<int>(blockIdx.x) / heads.heads;
  const QueryTile tile = heads.tile(static_cast<int>(gridDim.y - 1 - blockIdx.y), kQueries);
  const int first_query = tile.position;
  const int warp_row = 16 * M * warp(), warp_query = first_query + warp_row;
  const int width = static_cast<int>(heads.key_width()), out_width = static_cast<int>(heads.out_width());
  const int query_width = static_cast<int>(heads.query_width());
  const int first_row = batch * heads.tokens + tile.row, end_row = batch * heads.tokens + tile.end_row;  // among B T
  const int first_token = batch * heads.keys, end_token = first_token + heads.keys;  // of the sequence among B T' rows
  const int64_t of_statistic = int64_t{blockIdx.x} * heads.tokens;

  const auto copy_keys_and_values = [&](int stage, int first_key) {
    copy_tile_async<kThreads>(shared.stages[stage].keys, kv + heads.key(kv_head), width, first_token + first_key,
                              end_token);
    copy_tile_async<kThreads>(shared.stages[stage].values, kv + heads.value(kv_head), width, first_token + first_key,
                              end_token);
    simt::copy_commit();
  };
  copy_tile_async<kThreads>(shared.queries, q + heads.query(head), query_width, first_row, end_row);
  copy_tile_async<kThreads>(shared.d_outs, d_out + heads.query(head), out_width, first_row, end_row);
  copy_tile_async<kThreads>(shared.outs(), out + heads.query(head), out_width, first_row, end_row);
  const DocumentStarts<kDocuments> documents(starts, batch, heads.tokens, tile);
  const int begin_key = documents.of(first_query) / kKeys * kKeys;
  copy_keys_and_values(0, begin_key);
  simt::copy_wait<0>();
  __syncthreads();

  const RowOperand<M, kQueries, kHead, Tiling::kHeld> queries(shared.queries, warp_row);
  const RowOperand<M, kQueries, kHead, Tiling::kHeld> d_outs(shared.d_outs, warp_row);
  float row_delta[M][2] = {}, row_log_sum_exp[M][2];  // row_log_sum_exp is to base 2
  row_products(row_delta, d_outs, RowOperand<M, kQueries, kHead, false>(shared.outs(), warp_row), kHead);
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = tile.row + warp_row + 16 * m + 8 * half + group();  // its number
      row_delta[m][half] = group_sum(row_delta[m][half]);
      row_log_sum_exp[m][half] = INFINITY;  // makes the probabilities of rows that do not exist 0
      if (simt::in_bounds(query < tile.end_row)) {
        row_log_sum_exp[m][half] = finite_or_infinity(log_sum_exp[of_statistic + query]) * kLog2E;
        if (member() == 0) delta[of_statistic + query] = row_delta[m][half];
      }
    }

  float gradient[M][kHead / 8][4] = {};
  const int end_key = tile.end_key(kQueries, heads.keys);
  for (int first_key = begin_key, stage = 0; first_key < end_key; first_key += kKeys, stage ^= 1) {
    simt::copy_wait<0>();
    __syncthreads();
    if (first_key + kKeys < end_key) copy_keys_and_values(stage ^ 1, first_key + kKeys);
    const auto& [keys, values] = shared.stages[stage];
#pragma unroll 1
    for (int step = 0; step < kKeys; step += kStep) {
      if (first_key + step >= warp_query + 16 * M) break;  // above the diagonal
      if (first_key + step + kStep <= documents.of(warp_query)) continue;
      float s[M][kStep / 8][4], dp[M][kStep / 8][4];
      multiply_transposed(s, queries, keys, step);
      multiply_transposed(dp, d_outs, values, step);
      if (first_key + step + kStep > min(warp_query + 1, heads.keys))
        mask_later_keys<false>(s, warp_query, first_key + step, heads.keys);
      if constexpr (kDocuments)
        if (first_key + step < documents.last_before(warp_query + 16 * M))
          mask_earlier_documents<false>(s, warp_query, first_key + step, documents);
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            dp[m][n][i] = simt::exp2_fast(s[m][n][i] * scale_to_base_2 - row_log_sum_exp[m][i / 2]) *
                          (dp[m][n][i] - row_delta[m][i / 2]);
      multiply(gradient, dp, keys, step);
    }
  }

  float factor[M][2];
#pragma unroll
  for (int m = 0; m < M; ++m) factor[m][0] = factor[m][1] = scale;
  const float most = store_rows(shared.queries, warp_row, gradient, factor, d_q + heads.query(head), query_width,
                                first_row + warp_row, end_row);
  note_largest_over(most, largest, shared);
}

template <class Tiling>
struct KeyShared {
  Tile<Tiling::kKeys, Tiling::kHead> keys, values;
  Tile<Tiling::kOthers, Tiling::kHead> queries[2], d_outs[2];
  alignas(16) float statistics[2][2 * Tiling::kOthers];  // for each query log_sum_exp to base 2, then delta
};

// d_out (B, T, H D), q and kv (AttentionHeads), log_sum_exp, delta (B, H, T), starts (B, T) -> the key and value heads
// of d_kv: sums over the group's query heads, in order. Grid (B K, tiles of keys, those with the most queries first).
template <class Tiling, bool kDocuments>
__global__ void __launch_bounds__(kThreads, 1)
    flash_key_value_gradient_kernel(AttentionHeads heads, float scale, float scale_to_base_2,
                                    const bf16* __restrict__ d_out, const bf16* __restrict__ q,
                                    const bf16* __restrict__ kv, const float* __restrict__ log_sum_exp,
                                    const float* __restrict__ delta, const int32_t* __restrict__ starts,
                                    bf16* __restrict__ d_kv, uint32_t* largest) {
  constexpr int M = Tiling::kKeyTiles, kHead = Tiling::kHead, kKeys = Tiling::kKeys, kQueries = Tiling::kOthers;
  constexpr int kStep = Tiling::kStep;
  static_assert(2 * kQueries == kThreads);
  auto& shared = simt::shared_memory<KeyShared<Tiling>>();
  const int kv_head = static_cast<int>(blockIdx.x) % heads.kv_heads;
  const int batch = static_cast<int>(blockIdx.x) / heads.kv_heads;
  const int first_key = static_cast<int>(blockIdx.y) * kKeys;
  const int warp_row = 16 * M * warp(), warp_key = first_key + warp_row;
  const int width = static_cast<int>(heads.key_width()), query_width = static_cast<int>(heads.query_width());
  const int out_width = static_cast<int>(heads.out_width());
  const int first_token = batch * heads.keys, end_token = first_token + heads.keys;  // of the sequence among B T' rows
  const int first_row = batch * heads.tokens;                                        // of its queries among B T

  // The tile of queries that comes next: from the diagonal on, of each head of the group.
  // What is known of it is computed again where it is needed, as there are no registers left to hold it.
  int head = kv_head * heads.group(), tile = heads.first_tile_seeing(first_key, kQueries);
  const int end_head = tile < heads.tiles(kQueries) ? head + heads.group() : head;
  const auto starts_of = [&](const QueryTile& of) {
    return DocumentStarts<kDocuments>(starts, batch, heads.tokens, of);
  };
  const auto copy_queries_and_d_outs = [&](int stage) {
    const QueryTile next = heads.tile(tile, kQueries);
    copy_tile_async<kThreads>(shared.queries[stage], q + heads.query(head), query_width, first_row + next.row,
                              first_row + next.end_row);
    copy_tile_async<kThreads>(shared.d_outs[stage], d_out + heads.query(head), out_width, first_row + next.row,
                              first_row + next.end_row);
    simt::copy_commit();
  };
  // Each thread loads one number: even threads a log_sum_exp, odd threads a delta.
  const auto load_statistic = [&] {
    const bool is_delta = threadIdx.x % 2 == 1;
    const QueryTile next = heads.tile(tile, kQueries);
    const int query = next.row + static_cast<int>(threadIdx.x) / 2;  // its number
    float value = is_delta ? 0.0f : INFINITY;  // makes the probabilities of queries that do not exist 0
    if (simt::in_bounds(query < next.end_row))
      value = (is_delta ? delta : log_sum_exp)[(int64_t{batch} * heads.heads + head) * heads.tokens + query];
    return is_delta ? value : finite_or_infinity(value) * kLog2E;
  };

  copy_tile_async<kThreads>(shared.keys, kv + heads.key(kv_head), width, first_token + first_key, end_token);
  copy_tile_async<kThreads>(shared.values, kv + heads.value(kv_head), width, first_token + first_key, end_token);
  if (head < end_head) {
    copy_queries_and_d_outs(0);
    shared.statistics[0][threadIdx.x] = load_statistic();
  } else {  // no query sees these keys, whose gradients are 0 and pass through their tiles
    simt::copy_commit();
    simt::copy_wait<0>();
    __syncthreads();
  }
  const RowOperand<M, kKeys, kHead, false> keys(shared.keys, warp_row), values(shared.values, warp_row);
  float key_gradient[M][kHead / 8][4] = {}, value_gradient[M][kHead / 8][4] = {};

  for (int stage = 0; head < end_head; stage ^= 1) {
    simt::copy_wait<0>();
    __syncthreads();
    const QueryTile queries = heads.tile(tile, kQueries);
    const int first = queries.position;
    float next_statistic = 0;
    // The next head follows when the queries end, or when the next queries and all after them are in later documents.
    if (++tile == heads.tiles(kQueries) || starts_of(heads.tile(tile, kQueries)).first() >= first_key + kKeys)
      tile = heads.first_tile_seeing(first_key, kQueries), ++head;
    if (head < end_head) {
      copy_queries_and_d_outs(stage ^ 1);
      next_statistic = load_statistic();
    }
#pragma unroll 1
    for (int step = 0; step < kQueries; step += kStep) {
      if (first + step + kStep <= warp_key) continue;  // above the diagonal
      float p[M][kStep / 8][4], ds[M][kStep / 8][4];
      multiply_transposed(p, keys, shared.queries[stage], step);
      multiply_transposed(ds, values, shared.d_outs[stage], step);
      if (first + step < warp_key + 16 * M - 1) mask_later_keys<true>(p, warp_key, first + step, heads.keys);
      if constexpr (kDocuments)
        if (const auto documents = starts_of(queries); warp_key < documents.last_before(first + step + kStep))
          mask_earlier_documents<true>(p, warp_key, first + step, documents);
#pragma unroll
      for (int n = 0; n < kStep / 8; ++n) {
        const float4 pair =
            *reinterpret_cast<const float4*>(&shared.statistics[stage][2 * (step + 8 * n + 2 * member())]);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            p[m][n][i] = simt::exp2_fast(p[m][n][i] * scale_to_base_2 - (i % 2 ? pair.z : pair.x));
            ds[m][n][i] = p[m][n][i] * (ds[m][n][i] - (i % 2 ? pair.w : pair.y));
          }
      }
      multiply(value_gradient, p, shared.d_outs[stage], step);
      multiply(key_gradient, ds, shared.queries[stage], step);
    }
    shared.statistics[stage ^ 1][threadIdx.x] = next_statistic;
  }

  float factor[M][2];
#pragma unroll
  for (int m = 0; m < M; ++m) factor[m][0] = factor[m][1] = scale;
  float most = store_rows(shared.keys, warp_row, key_gradient, factor, d_kv + heads.key(kv_head), width,
                          first_token + warp_key, end_token);
#pragma unroll
  for (int m = 0; m < M; ++m) factor[m][0] = factor[m][1] = 1;
  most = fmaxf(most, store_rows(shared.values, warp_row, value_gradient, factor, d_kv + heads.value(kv_head), width,
                                first_token + warp_key, end_token));
  note_largest_over(most, largest, shared);
}

template <int kHead, bool kDocuments>
void backward_of(const KernelCall& call) {
  using T = Tiling<kHead>;
  const AttentionShape s = attention_shape(call, 1);
  const AttentionHeads heads(s);
  const bf16 *d_out = call.in<bf16>(0), *q = call.in<bf16>(1), *out = call.in<bf16>(2),
             *kv = s.keys ? call.in<bf16>(5) : q;
  const float* log_sum_exp = call.in(3);
  const int32_t* starts = call.in_int(4);
  bf16 *d_q = call.out<bf16>(0), *d_kv = s.keys ? call.out<bf16>(2) : d_q;
  auto* delta = call.workspace();
  uint32_t* largest = largest_of(call);  // in output 0
  const auto query_tiles = static_cast<unsigned>(heads.tiles(T::kQueries)),
             key_tiles = static_cast<unsigned>((s.key_rows() + T::kKeys - 1) / T::kKeys);
  simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(s.batch * s.heads), query_tiles), dim3(kThreads),
               sizeof(QueryShared<T>), flash_query_gradient_kernel<T, kDocuments>, heads, heads.scale(),
               heads.scale() * kLog2E, d_out, q, kv, out, log_sum_exp, starts, d_q, delta, largest);
  simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(s.batch * s.kv_heads), key_tiles), dim3(kThreads),
               sizeof(KeyShared<T>), flash_key_value_gradient_kernel<T, kDocuments>, heads, heads.scale(),
               heads.scale() * kLog2E, d_out, q, kv, log_sum_exp, delta, starts, d_kv, d_kv == d_q ? largest : nullptr);
}

template <int kHead>
void backward(const KernelCall& call) {
  call.has_input(4) ? backward_of<kHead, true>(call) : backward_of<kHead, false>(call);
}

}  // namespace

void flash_attention_backward(const KernelCall& call) {
  switch (attention_shape(call, 1).head_size) {
    case 32: return backward<32>(call);
    case 64: return backward<64>(call);
    case 96: return backward<96>(call);
    default: return backward<128>(call);
  }
}

}  // namespace llm::cuda
