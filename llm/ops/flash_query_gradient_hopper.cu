// Causal attention of bf16 on Hopper's tensor cores, backward, the first of two kernels: dQ, and the statistics of each
// query that the second kernel needs. flash_attention_backward.cu says why there are two: each gradient has one writer
// and one order of sums.
//
// Warpgroups own 64 queries each and go through the keys from the diagonal to the first. Scores and dP are products
// with the tiles that the producer has copied; dS becomes a left operand in the registers in which it is computed.
// While a warpgroup computes dS, its product with the tile before runs, and so do the products of the other warpgroups.
#include "llm/graph/kernel.h"
#include "llm/ops/flash_hopper_cuda.h"
#include "llm/ops/largest_cuda.h"

namespace llm::cuda {
namespace flash {

// kGroups warpgroups of 64 queries; tiles of kKeys keys in kKeyStages stages, of values in kValueStages stages; own
// tiles in kItems stages. With kTurns the warpgroups take turns in starting products.
template <int kHeadSize, int kKeysAtATime, int kConsumers, int kKeyRing, int kValueRing, int kItemRing, bool kInTurns>
struct QueryTiling {
  static constexpr int kHead = kHeadSize, kKeys = kKeysAtATime, kGroups = kConsumers;
  static constexpr int kKeyStages = kKeyRing, kValueStages = kValueRing, kItems = kItemRing;
  static constexpr int kQueries = kGroupRows * kGroups, kThreads = kWarpgroup * (1 + kGroups);
  static constexpr bool kTurns = kInTurns;
  static constexpr int kProducerRegisters = kGroups == 2 ? 40 : 32, kConsumerRegisters = kGroups == 2 ? 232 : 160;
};

}  // namespace flash

namespace {

using namespace flash;

template <class Tiling>
struct QueryShared {
  struct Own {
    simt::SwizzledTile<Tiling::kQueries, Tiling::kHead> queries, d_outs, outs;
  };
  Own own[Tiling::kItems];
  Item items[Tiling::kItems];
  simt::SwizzledTile<Tiling::kKeys, Tiling::kHead> keys[Tiling::kKeyStages], values[Tiling::kValueStages];
  simt::Barrier own_full[Tiling::kItems], own_empty[Tiling::kItems];
  simt::Barrier keys_full[Tiling::kKeyStages], keys_empty[Tiling::kKeyStages];
  simt::Barrier values_full[Tiling::kValueStages], values_empty[Tiling::kValueStages];
};

struct QueryMaps {
  simt::TensorMap queries, d_outs, outs, keys;
};

template <class Tiling, bool kDocuments>
__device__ __forceinline__ void produce_keys(QueryShared<Tiling>& shared, const QueryMaps& maps,
                                             const AttentionHeads& heads, const Schedule& schedule,
                                             const int32_t* starts) {
  Place<Tiling::kItems> own;
  Place<Tiling::kKeyStages> key_place;
  Place<Tiling::kValueStages> value_place;
  int any_head, rank;
  for (int round = 0; schedule.next(round, any_head, rank);) {
    const int head = any_head % heads.heads, batch = any_head / heads.heads, kv_head = head / heads.group();
    Item item = query_item<Tiling::kQueries, Tiling::kKeys, kDocuments>(heads, batch, rank, starts);
    item.head = head;
    auto& own_full = shared.own_full[own.stage];
    auto& tile_of = shared.own[own.stage];
    simt::wait(shared.own_empty[own.stage], own.parity ^ 1);
    shared.items[own.stage] = item;
    simt::arrive_expecting(own_full, 3 * tile_of.queries.kBytes);
    copy_tile(tile_of.queries, maps.queries, heads.query(head), item.first_row, batch, own_full);
    copy_tile(tile_of.d_outs, maps.d_outs, heads.query(head), item.first_row, batch, own_full);
    copy_tile(tile_of.outs, maps.outs, heads.query(head), item.first_row, batch, own_full);
    own.advance();
#pragma unroll 1
    for (int tile = item.last_tile; tile >= item.first_tile; --tile) {
      auto& keys_full = shared.keys_full[key_place.stage];
      simt::wait(shared.keys_empty[key_place.stage], key_place.parity ^ 1);
      simt::arrive_expecting(keys_full, shared.keys[0].kBytes);
      copy_tile(shared.keys[key_place.stage], maps.keys, heads.key(kv_head), tile * Tiling::kKeys, batch, keys_full);
      key_place.advance();
      auto& values_full = shared.values_full[value_place.stage];
      simt::wait(shared.values_empty[value_place.stage], value_place.parity ^ 1);
      simt::arrive_expecting(values_full, shared.values[0].kBytes);
      copy_tile(shared.values[value_place.stage], maps.keys, heads.value(kv_head), tile * Tiling::kKeys, batch,
                values_full);
      value_place.advance();
    }
  }
  simt::wait(shared.own_empty[own.stage], own.parity ^ 1);
  shared.items[own.stage].head = kNoItem;
  simt::arrive(shared.own_full[own.stage]);
}

// The dot products of corresponding rows of two tiles, for the warp's 16 rows from `row` on; this lane gets two of
// them.
template <int kRows, int kHead>
__device__ __forceinline__ void row_sums(float (&sum)[2], const simt::SwizzledTile<kRows, kHead>& a,
                                         const simt::SwizzledTile<kRows, kHead>& b, int row) {
  const int lane = simt::computed_here(flash::lane());
  sum[0] = sum[1] = 0;
#pragma unroll
  for (int k = 0; k < kHead / 16; ++k) {
    uint32_t x[4], y[4];
    simt::load_matrix_x4(x, a.chunk(row + lane % 16, 2 * k + lane / 16));
    simt::load_matrix_x4(y, b.chunk(row + lane % 16, 2 * k + lane / 16));
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sum[i % 2] += float_of_bits(x[i] << 16) * float_of_bits(y[i] << 16) +
                    float_of_bits(x[i] & 0xffff0000) * float_of_bits(y[i] & 0xffff0000);
  }
  sum[0] = group_sum(sum[0]), sum[1] = group_sum(sum[1]);
}

template <class Tiling, bool kDocuments>
__device__ __forceinline__ void consume_keys(QueryShared<Tiling>& shared, const AttentionHeads& heads, float scale,
                                             float scale_to_base_2, const float* log_sum_exp, const int32_t* starts,
                                             bf16* d_q, float2* statistics, int statistic_rows, uint32_t* largest,
                                             int consumer) {
  constexpr int kHead = Tiling::kHead, kKeys = Tiling::kKeys, kGroups = Tiling::kGroups;
  constexpr int kTurn = 1, kStore = kTurn + kGroups;  // numbers of the first barriers, of which each warpgroup has one
  const int row = kGroupRows * consumer, warp_row = row + 16 * (warp() % 4), tokens = heads.tokens;
  const auto wait_for_turn = [&] {
    if constexpr (Tiling::kTurns) simt::meet(kTurn + consumer, 2 * kWarpgroup);
  };
  const auto pass_turn = [&] {
    if constexpr (Tiling::kTurns) simt::pass(kTurn + (consumer + 1) % kGroups, 2 * kWarpgroup);
  };
  Place<Tiling::kItems> own;
  Place<Tiling::kKeyStages> key_place, used_key_place;  // of the tile for the next scores; for the next product with dS
  Place<Tiling::kValueStages> value_place;
  const auto skip_tile = [&] {
    wait_for_turn();
    pass_turn();
    simt::wait(shared.keys_full[key_place.stage], key_place.parity);
    release(shared.keys_empty[key_place.stage]);
    key_place.advance();
    used_key_place.advance();
    simt::wait(shared.values_full[value_place.stage], value_place.parity);
    release(shared.values_empty[value_place.stage]);
    value_place.advance();
  };
  float most = 0;
  if (consumer == kGroups - 1) pass_turn();

  for (;;) {
    simt::wait(shared.own_full[own.stage], own.parity);
    const Item item = shared.items[own.stage];
    if (item.head == kNoItem) break;
    const int first_query = item.position + row, warp_query = item.position + warp_row;
    if (first_query < item.chunk) {
#pragma unroll 1
      for (int tile = item.last_tile; tile >= item.first_tile; --tile) skip_tile();
      __syncwarp();  // all lanes have read the item
      release(shared.own_empty[own.stage]);
      own.advance();
      continue;
    }
    const auto documents = starts_of_item<kDocuments>(heads, item, starts);
    const int last = min(item.last_tile, (first_query + kGroupRows - 1) / kKeys);
    const int first = min(max(item.first_tile, documents.of(first_query) / kKeys), last);
    const int last_start = documents.last_before(warp_query + 16);
    const int64_t head = int64_t{item.batch} * heads.heads + item.head;  // among those of all batches
    auto& own_tiles = shared.own[own.stage];

    float row_delta[2], row_log_sum_exp[2];  // row_log_sum_exp is to base 2
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = item.first_row + warp_row + 8 * half + group();  // its number
      row_log_sum_exp[half] = INFINITY;  // makes the probabilities of rows that do not exist 0
      if (simt::in_bounds(query < tokens))
        row_log_sum_exp[half] = finite_or_infinity(log_sum_exp[head * tokens + query]) * kLog2E;
    }
    row_sums(row_delta, own_tiles.d_outs, own_tiles.outs, warp_row);
    float2* const of_head = statistics + head * statistic_rows;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = item.first_row + warp_row + 8 * half + group();
      if (member() == 0 && simt::in_bounds(query < statistic_rows))
        of_head[query] = make_float2(row_log_sum_exp[half], row_delta[half]);
    }
    // The next kernel also reads the statistics of queries beyond this kernel's tiles.
    if (item.first_row + Tiling::kQueries >= tokens && consumer == kGroups - 1)
      for (int query = item.first_row + Tiling::kQueries + static_cast<int>(threadIdx.x) % kWarpgroup;
           query < statistic_rows; query += kWarpgroup)
        of_head[query] = make_float2(INFINITY, 0);
#pragma unroll 1
    for (int tile = item.last_tile; tile > last; --tile) skip_tile();

    float s[1][kKeys / 8][4], dp[kKeys / 8][4], gradient[kHead / 8][4];
    uint32_t ds[kKeys / 16][4];
    const auto start_scores = [&] {
      simt::wait(shared.keys_full[key_place.stage], key_place.parity);
      simt::wait(shared.values_full[value_place.stage], value_place.parity);
      wait_for_turn();
      simt::products_begin();
      row_products_async(s[0], own_tiles.queries, row, shared.keys[key_place.stage]);
      row_products_async(dp, own_tiles.d_outs, row, shared.values[value_place.stage]);
      simt::products_commit();
      key_place.advance();
    };
    const auto finish_scores = [&] {
      simt::hold(s[0]);
      simt::hold(dp);
      release(shared.values_empty[value_place.stage]);
      value_place.advance();
    };
    const auto add_gradient = [&](bool add) {
      simt::products_begin();
      weighted_rows_async(gradient, ds, shared.keys[used_key_place.stage], add);
      simt::products_commit();
    };
    const auto finish_gradient = [&] {
      simt::products_wait<0>();
      simt::hold(gradient);
      release(shared.keys_empty[used_key_place.stage]);
      used_key_place.advance();
    };
    const auto differentiate = [&](int tile) {
      if constexpr (kDocuments)
        if (tile * kKeys < last_start) mask_earlier_documents<false>(s, warp_query, tile * kKeys, documents);
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          s[0][n][i] =
              simt::exp2_fast(s[0][n][i] * scale_to_base_2 - row_log_sum_exp[i / 2]) * (dp[n][i] - row_delta[i / 2]);
    };
    start_scores();
    pass_turn();
    simt::products_wait<0>();
    finish_scores();
    mask_later_keys<false>(s, warp_query, last * kKeys, heads.keys);
    differentiate(last);
    pack(ds, s[0]);

    bool add = false;
#pragma unroll 1
    for (int tile = last - 1; tile >= first; --tile) {
      start_scores();
      add_gradient(add);
      add = true;
      pass_turn();
      simt::products_wait<1>();
      finish_scores();
      differentiate(tile);
      finish_gradient();
      pack(ds, s[0]);
    }
    add_gradient(add);
    finish_gradient();
#pragma unroll 1
    for (int tile = first - 1; tile >= item.first_tile; --tile) skip_tile();

    simt::meet(kStore + consumer, kWarpgroup);  // no product of the warpgroup reads the queries any more
    store_rows(own_tiles.queries, warp_row, gradient, scale, scale,
               d_q + int64_t{item.batch} * tokens * heads.query_width() + heads.query(item.head), heads.query_width(),
               item.first_row + warp_row, tokens, largest != nullptr, most);
    simt::fence_async_proxy();
    __syncwarp();
    release(shared.own_empty[own.stage]);
    own.advance();
  }
  if (consumer == 0) wait_for_turn();  // takes the last turn, so that no arrival is left at the barrier
  note_largest_of_warp(most, largest);
}

// log_sum_exp (B, H, T), starts (B, T) -> the query heads of d_q, statistics (B, H, statistic_rows) as in
// BackwardTensors. kDocuments as in the forward kernel. The maps are of the tensors of queries, of keys and values and,
// for d_outs and outs, of d_out and out (B, T, H D).
template <class Tiling, bool kDocuments>
__global__ void __launch_bounds__(Tiling::kThreads, 1)
    flash_query_gradient_hopper_kernel(const __grid_constant__ QueryMaps maps, AttentionHeads heads, Schedule schedule,
                                       float scale, float scale_to_base_2, const float* __restrict__ log_sum_exp,
                                       const int32_t* __restrict__ starts, bf16* __restrict__ d_q,
                                       float2* __restrict__ statistics, int statistic_rows, uint32_t* largest) {
  if constexpr (simt::kHopperCode) {
    auto& shared = simt::tile_memory<QueryShared<Tiling>>();
    if (threadIdx.x == 0) {
      constexpr int kWarps = 4 * Tiling::kGroups;
      initialize_ring(shared.own_full, shared.own_empty, kWarps);
      initialize_ring(shared.keys_full, shared.keys_empty, kWarps);
      initialize_ring(shared.values_full, shared.values_empty, kWarps);
      simt::fence_initialization();
    }
    __syncthreads();
    const int role = warpgroup();
    if (role == 0) {
      simt::give_back_registers<Tiling::kProducerRegisters>();
      if (threadIdx.x == 0) produce_keys<Tiling, kDocuments>(shared, maps, heads, schedule, starts);
    } else {
      simt::take_registers<Tiling::kConsumerRegisters>();
      consume_keys<Tiling, kDocuments>(shared, heads, scale, scale_to_base_2, log_sum_exp, starts, d_q, statistics,
                                       statistic_rows, largest, role - 1);
    }
  } else {
    __trap();
  }
}

template <class Tiling>
void launch_query_gradient(cudaStream_t stream, int multiprocessors, const AttentionShape& s,
                           const BackwardTensors& t) {
  const AttentionHeads heads(s);
  const int64_t tiles = heads.tiles(Tiling::kQueries);
  const int64_t blocks = std::min<int64_t>(multiprocessors, s.batch * s.heads * tiles);
  const Schedule schedule = schedule_of(s.batch * s.heads, tiles, blocks,
                                        s.key_rows() * s.head_size * 2 * int64_t{sizeof(bf16)} / heads.group());
  const auto map = [&](const bf16* matrix, int64_t columns) {
    return head_map(matrix, s.batch, s.tokens, columns, heads.head_size, Tiling::kQueries);
  };
  const QueryMaps maps = {map(t.q, heads.query_width()), map(t.d_out, heads.out_width()), map(t.out, heads.out_width()),
                          head_map(t.kv, s.batch, s.key_rows(), heads.key_width(), heads.head_size, Tiling::kKeys)};
  simt::launch(
      stream, dim3(static_cast<unsigned>(blocks)), dim3(Tiling::kThreads), sizeof(QueryShared<Tiling>),
      t.starts ? flash_query_gradient_hopper_kernel<Tiling, true> : flash_query_gradient_hopper_kernel<Tiling, false>,
      maps, heads, schedule, heads.scale(), heads.scale() * kLog2E, t.log_sum_exp, t.starts, t.d_q, t.statistics,
      static_cast<int>(attention_statistic_rows(s.tokens)), t.largest);
}

}  // namespace

void query_gradient_hopper(cudaStream_t stream, int multiprocessors, const AttentionShape& s,
                           const BackwardTensors& t) {
  s.head_size == 64 ? launch_query_gradient<QueryTiling<64, 128, 2, 3, 2, 2, true>>(stream, multiprocessors, s, t)
                    : launch_query_gradient<QueryTiling<128, 64, 2, 3, 2, 1, true>>(stream, multiprocessors, s, t);
}

}  // namespace llm::cuda
