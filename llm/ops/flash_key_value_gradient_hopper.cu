// Causal attention of bf16 on Hopper's tensor cores, backward, the second of two kernels: dK and dV.
//
// Warpgroups own 64 keys each and go through the queries from the diagonal to the last, of all heads that share the
// keys. The scores are transposed, with a row for each key, so that P^T and dS^T become left operands in the registers
// in which they are computed.
#include "llm/graph/kernel.h"
#include "llm/ops/flash_hopper_cuda.h"
#include "llm/ops/largest_cuda.h"

namespace llm::cuda {
namespace flash {

// Two warpgroups of 64 keys; tiles of kQueries queries in kStages stages; own tiles in kItems stages. With kOverlap the
// products with P^T and dS^T of one tile run while P^T and dS^T of the next tile are computed, which takes more
// registers.
template <int kHeadSize, int kQueriesAtATime, int kRing, int kItemRing, bool kOverlapped>
struct KeyTiling {
  static constexpr int kHead = kHeadSize, kQueries = kQueriesAtATime, kGroups = 2, kStages = kRing, kItems = kItemRing;
  static constexpr int kKeys = kGroupRows * kGroups, kThreads = kWarpgroup * (1 + kGroups);
  static constexpr bool kOverlap = kOverlapped;
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
};

}  // namespace flash

namespace {

using namespace flash;

template <class Tiling>
struct KeyShared {
  struct Own {
    simt::SwizzledTile<Tiling::kKeys, Tiling::kHead> keys, values;
  };
  Own own[Tiling::kItems];
  Item items[Tiling::kItems];
  struct Stage {
    simt::SwizzledTile<Tiling::kQueries, Tiling::kHead> queries, d_outs;
  };
  Stage stages[Tiling::kStages];
  alignas(128) float statistics[Tiling::kStages][2 * Tiling::kQueries];  // log_sum_exp and delta of each query
  simt::Barrier own_full[Tiling::kItems], own_empty[Tiling::kItems], full[Tiling::kStages], empty[Tiling::kStages];
};

struct KeyMaps {
  simt::TensorMap keys, queries, d_outs;
};

// The last of the tiles `low` to `high` of kTile queries whose first query is in a document that starts before key
// `end`: later tiles see none of the keys before `end`. Without documents this is `high`.
template <int kTile, bool kDocuments>
__device__ __forceinline__ int last_tile_before(int low, int high, int end, const AttentionHeads& heads, int batch,
                                                const int32_t* starts) {
  if constexpr (kDocuments)
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (DocumentStarts<kDocuments>(starts, batch, heads.tokens, heads.tile(middle, kTile)).first() < end)
        low = middle;
      else
        high = middle - 1;
    }
  return high;
}

template <class Tiling, bool kDocuments>
__device__ __forceinline__ void produce_queries(KeyShared<Tiling>& shared, const KeyMaps& maps,
                                                const AttentionHeads& heads, const Schedule& schedule,
                                                const int32_t* starts, const float2* statistics, int statistic_rows) {
  Place<Tiling::kItems> own;
  Place<Tiling::kStages> place;
  int any_head, rank;
  for (int round = 0; schedule.next(round, any_head, rank);) {
    const int kv_head = any_head % heads.kv_heads, batch = any_head / heads.kv_heads;
    const int first_key = rank * Tiling::kKeys, first_tile = heads.first_tile_seeing(first_key, Tiling::kQueries);
    const Item item = {batch, kv_head, first_key, first_tile,
                       last_tile_before<Tiling::kQueries, kDocuments>(first_tile, heads.tiles(Tiling::kQueries) - 1,
                                                                      first_key + Tiling::kKeys, heads, batch, starts)};
    auto& own_full = shared.own_full[own.stage];
    auto& own_tiles = shared.own[own.stage];
    simt::wait(shared.own_empty[own.stage], own.parity ^ 1);
    shared.items[own.stage] = item;
    simt::arrive_expecting(own_full, 2 * own_tiles.keys.kBytes);
    copy_tile(own_tiles.keys, maps.keys, heads.key(kv_head), first_key, batch, own_full);
    copy_tile(own_tiles.values, maps.keys, heads.value(kv_head), first_key, batch, own_full);
    own.advance();
    for (int head = kv_head * heads.group(); head < (kv_head + 1) * heads.group(); ++head) {
      const float2* const of_head = statistics + (int64_t{batch} * heads.heads + head) * statistic_rows;
#pragma unroll 1
      for (int tile = item.first_tile; tile <= item.last_tile; ++tile) {
        auto& full = shared.full[place.stage];
        auto& stage = shared.stages[place.stage];
        simt::wait(shared.empty[place.stage], place.parity ^ 1);
        simt::arrive_expecting(full, 2 * stage.queries.kBytes + sizeof shared.statistics[0]);
        copy_tile(stage.queries, maps.queries, heads.query(head), tile * Tiling::kQueries, batch, full);
        copy_tile(stage.d_outs, maps.d_outs, heads.query(head), tile * Tiling::kQueries, batch, full);
        simt::copy_bytes_async(shared.statistics[place.stage], of_head + tile * Tiling::kQueries,
                               sizeof shared.statistics[0], full);
        place.advance();
      }
    }
  }
  simt::wait(shared.own_empty[own.stage], own.parity ^ 1);
  shared.items[own.stage].head = kNoItem;
  simt::arrive(shared.own_full[own.stage]);
}

template <class Tiling, bool kDocuments>
__device__ __forceinline__ void consume_queries(KeyShared<Tiling>& shared, const AttentionHeads& heads, float scale,
                                                float scale_to_base_2, const int32_t* starts, bf16* d_kv,
                                                uint32_t* largest, int consumer) {
  constexpr int kHead = Tiling::kHead, kQueries = Tiling::kQueries, kStore = 1;
  const int row = kGroupRows * consumer, warp_row = row + 16 * (warp() % 4), keys = heads.keys;
  Place<Tiling::kItems> own;
  Place<Tiling::kStages> place, used_place;  // of the tile for the next scores; for the next products with P^T and dS^T
  float most = 0;

  for (;;) {
    simt::wait(shared.own_full[own.stage], own.parity);
    const Item item = shared.items[own.stage];
    if (item.head == kNoItem) break;
    const int first_key = item.first_row + row, warp_key = item.first_row + warp_row;
    const int diagonal = heads.first_tile_seeing(first_key, kQueries);
    const int last = first_key < keys
                         ? last_tile_before<kQueries, kDocuments>(item.first_tile, item.last_tile,
                                                                  first_key + kGroupRows, heads, item.batch, starts)
                         : -1;
    auto& own_tiles = shared.own[own.stage];

    float p[1][kQueries / 8][4], ds[kQueries / 8][4], key_gradient[kHead / 8][4], value_gradient[kHead / 8][4];
    uint32_t packed_p[kQueries / 16][4], packed_ds[kQueries / 16][4];
    const auto start_scores = [&] {
      simt::wait(shared.full[place.stage], place.parity);
      simt::products_begin();
      row_products_async(p[0], own_tiles.keys, row, shared.stages[place.stage].queries);
      row_products_async(ds, own_tiles.values, row, shared.stages[place.stage].d_outs);
      simt::products_commit();
    };
    const auto differentiate = [&](int tile) {
      simt::hold(p[0]);
      simt::hold(ds);
      if (tile == diagonal) mask_later_keys<true>(p, warp_key, heads.tile(tile, kQueries).position, keys);
      if constexpr (kDocuments) {
        const QueryTile queries = heads.tile(tile, kQueries);
        const DocumentStarts<kDocuments> documents(starts, item.batch, heads.tokens, queries);
        if (warp_key < documents.last_before(queries.position + kQueries))
          mask_earlier_documents<true>(p, warp_key, queries.position, documents);
      }
#pragma unroll
      for (int n = 0; n < kQueries / 8; ++n) {
        const float4 pair =
            *reinterpret_cast<const float4*>(&shared.statistics[place.stage][2 * (8 * n + 2 * member())]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          p[0][n][i] = simt::exp2_fast(p[0][n][i] * scale_to_base_2 - (i % 2 ? pair.z : pair.x));
          ds[n][i] = p[0][n][i] * (ds[n][i] - (i % 2 ? pair.w : pair.y));
        }
      }
      place.advance();
    };
    const auto pack_both = [&] {
      pack(packed_p, p[0]);
      pack(packed_ds, ds);
    };
    const auto add_gradients = [&](bool add) {
      simt::products_begin();
      weighted_rows_async(value_gradient, packed_p, shared.stages[used_place.stage].d_outs, add);
      weighted_rows_async(key_gradient, packed_ds, shared.stages[used_place.stage].queries, add);
      simt::products_commit();
    };
    const auto finish_gradients = [&] {
      simt::products_wait<0>();
      simt::hold(value_gradient);
      simt::hold(key_gradient);
      __syncwarp();  // all lanes have read the statistics
      release(shared.empty[used_place.stage]);
      used_place.advance();
    };
    const auto skip_tile = [&] {
      simt::wait(shared.full[place.stage], place.parity);
      release(shared.empty[place.stage]);
      place.advance();
    };

    bool add = false, computed = false;  // whether the gradients hold a sum; whether P^T and dS^T are to be added to it
#pragma unroll 1
    for (int head = 0; head < heads.group(); ++head)
#pragma unroll 1
      for (int tile = item.first_tile; tile <= item.last_tile; ++tile) {
        if (tile < diagonal || tile > last) {
          skip_tile();
          if (computed) {
            add_gradients(add);
            add = true, computed = false;
            finish_gradients();
          }
          used_place.advance();
          continue;
        }
        if (Tiling::kOverlap && computed) {
          start_scores();
          add_gradients(add);
          add = true;
          simt::products_wait<1>();
          differentiate(tile);
          finish_gradients();
          pack_both();
        } else {
          start_scores();
          simt::products_wait<0>();
          differentiate(tile);
          pack_both();
          if constexpr (Tiling::kOverlap) {
            computed = true;
          } else {
            add_gradients(add);
            add = true;
            finish_gradients();
          }
        }
      }
    if (Tiling::kOverlap && computed) {
      add_gradients(add);
      add = true;
      finish_gradients();
    }
    if (!add)  // no query here sees these keys
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) key_gradient[n][i] = value_gradient[n][i] = 0;

    if (first_key < keys) {
      simt::meet(kStore + consumer, kWarpgroup);  // no product of the warpgroup reads its keys and values any more
      const int64_t width = heads.key_width();
      bf16* const of_batch = d_kv + int64_t{item.batch} * keys * width;
      store_rows(own_tiles.keys, warp_row, key_gradient, scale, scale, of_batch + heads.key(item.head), width, warp_key,
                 keys, largest != nullptr, most);
      store_rows(own_tiles.values, warp_row, value_gradient, 1, 1, of_batch + heads.value(item.head), width, warp_key,
                 keys, largest != nullptr, most);
    }
    simt::fence_async_proxy();
    __syncwarp();
    release(shared.own_empty[own.stage]);
    own.advance();
  }
  note_largest_of_warp(most, largest);
}

// statistics (B, H, statistic_rows), starts (B, T) -> the key and value heads of d_kv: sums over the group's query
// heads, in order. The maps are of the tensors of keys and values, of queries and, for d_outs, of d_out (B, T, H D).
template <class Tiling, bool kDocuments>
__global__ void __launch_bounds__(Tiling::kThreads, 1)
    flash_key_value_gradient_hopper_kernel(const __grid_constant__ KeyMaps maps, AttentionHeads heads,
                                           Schedule schedule, float scale, float scale_to_base_2,
                                           const float2* __restrict__ statistics, int statistic_rows,
                                           const int32_t* __restrict__ starts, bf16* __restrict__ d_kv,
                                           uint32_t* largest) {
  if constexpr (simt::kHopperCode) {
    auto& shared = simt::tile_memory<KeyShared<Tiling>>();
    if (threadIdx.x == 0) {
      constexpr int kWarps = 4 * Tiling::kGroups;
      initialize_ring(shared.own_full, shared.own_empty, kWarps);
      initialize_ring(shared.full, shared.empty, kWarps);
      simt::fence_initialization();
    }
    __syncthreads();
    const int role = warpgroup();
    if (role == 0) {
      simt::give_back_registers<Tiling::kProducerRegisters>();
      if (threadIdx.x == 0)
        produce_queries<Tiling, kDocuments>(shared, maps, heads, schedule, starts, statistics, statistic_rows);
    } else {
      simt::take_registers<Tiling::kConsumerRegisters>();
      consume_queries<Tiling, kDocuments>(shared, heads, scale, scale_to_base_2, starts, d_kv, largest, role - 1);
    }
  } else {
    __trap();
  }
}

template <class Tiling>
void launch_key_value_gradient(cudaStream_t stream, int multiprocessors, const AttentionShape& s,
                               const BackwardTensors& t) {
  const AttentionHeads heads(s);
  const int64_t tiles = (s.key_rows() + Tiling::kKeys - 1) / Tiling::kKeys;
  const int64_t blocks = std::min<int64_t>(multiprocessors, s.batch * s.kv_heads * tiles);
  const Schedule schedule = schedule_of(s.batch * s.kv_heads, tiles, blocks,
                                        s.tokens * s.head_size * 2 * int64_t{sizeof(bf16)} * heads.group());
  const auto map = [&](const bf16* matrix, int64_t columns) {
    return head_map(matrix, s.batch, s.tokens, columns, heads.head_size, Tiling::kQueries);
  };
  const KeyMaps maps = {head_map(t.kv, s.batch, s.key_rows(), heads.key_width(), heads.head_size, Tiling::kKeys),
                        map(t.q, heads.query_width()), map(t.d_out, heads.out_width())};
  simt::launch(stream, dim3(static_cast<unsigned>(blocks)), dim3(Tiling::kThreads), sizeof(KeyShared<Tiling>),
               t.starts ? flash_key_value_gradient_hopper_kernel<Tiling, true>
                        : flash_key_value_gradient_hopper_kernel<Tiling, false>,
               maps, heads, schedule, heads.scale(), heads.scale() * kLog2E, t.statistics,
               static_cast<int>(attention_statistic_rows(s.tokens)), t.starts, t.d_kv,
               t.d_kv == t.d_q ? t.largest : nullptr);
}

}  // namespace

void key_value_gradient_hopper(cudaStream_t stream, int multiprocessors, const AttentionShape& s,
                               const BackwardTensors& t) {
  s.head_size == 64 ? launch_key_value_gradient<KeyTiling<64, 64, 4, 2, true>>(stream, multiprocessors, s, t)
                    : launch_key_value_gradient<KeyTiling<128, 64, 2, 2, false>>(stream, multiprocessors, s, t);
}

}  // namespace llm::cuda
