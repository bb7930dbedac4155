// Causal attention of bf16 on Hopper's tensor cores, forward: FlashAttention-3 (Shah et al. 2024, algorithms 1 and 2).
//
// The consumers of a block, warpgroups of 64 queries each, go through the keys from the diagonal to the first, kKeys at
// a time. In a warpgroup the product of one tile's probabilities with the values runs while the softmax of the next
// tile's scores is computed. With kTurns the warpgroups take turns in starting products, so that one's softmax
// coincides with the products of another. Scores become the left operand of the next product without leaving the
// registers. Only the tile on the diagonal, or with the last key, is masked. As the keys come in this order, the first
// tile of a query has a key that the query sees, so the largest score of the running softmax (Milakov and Gimelshein
// 2018) is never -infinity, unless documents hide keys.
// Bytes: queries and outputs once; keys and values once for each tile of queries, from the L2 cache after the first
// time.
#include "llm/graph/kernel.h"
#include "llm/ops/flash_hopper_cuda.h"
#include "llm/ops/largest_cuda.h"

namespace llm::cuda {
namespace flash {

// kGroups warpgroups share tiles of kKeys keys and values, in a ring of kStages stages. kTurns: see above.
template <int kHeadSize, int kKeysAtATime, int kConsumers, int kRing, bool kInTurns>
struct ForwardTiling {
  static constexpr int kHead = kHeadSize, kKeys = kKeysAtATime, kGroups = kConsumers, kStages = kRing;
  static constexpr int kQueries = kGroupRows * kGroups, kThreads = kWarpgroup * (1 + kGroups);
  static constexpr bool kTurns = kInTurns;
  static_assert(kGroups == 2 || kGroups == 3);
  static constexpr int kProducerRegisters = kGroups == 2 ? 40 : 32, kConsumerRegisters = kGroups == 2 ? 232 : 160;
  static constexpr int kItems = 2;  // stages of queries: those of the next item are copied while this item's are used
};

}  // namespace flash

namespace {

using namespace flash;

template <class Tiling>
struct ForwardShared {
  simt::SwizzledTile<Tiling::kQueries, Tiling::kHead> queries[Tiling::kItems];
  simt::SwizzledTile<Tiling::kKeys, Tiling::kHead> keys[Tiling::kStages], values[Tiling::kStages];
  Item items[Tiling::kItems];
  simt::Barrier queries_full[Tiling::kItems], queries_empty[Tiling::kItems];
  simt::Barrier keys_full[Tiling::kStages], keys_empty[Tiling::kStages];
  simt::Barrier values_full[Tiling::kStages], values_empty[Tiling::kStages];
};

// The running softmax of a warp's 16 rows; this thread has parts of two of them.
struct Softmax {
  float largest[2] = {-INFINITY, -INFINITY},
        sum[2] = {0, 0};  // of the raw scores; of the exponentials of this thread's columns alone

  // Scores become 2^(scale (score - largest)). The caller must multiply its earlier outputs by `correction`. Unless
  // kMayBeEmpty, each row must have had a score that is not masked.
  template <bool kMayBeEmpty, int N>
  __device__ __forceinline__ void add(float (&s)[N][4], float (&correction)[2], float scale) {
    float most[4] = {s[0][0], s[0][1], s[0][2], s[0][3]};
#pragma unroll
    for (int n = 1; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) most[i] = fmaxf(most[i], s[n][i]);
    float offset[2], part[4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float now = fmaxf(largest[half], group_max(fmaxf(most[2 * half], most[2 * half + 1])));
      const float shift = kMayBeEmpty && now == -INFINITY ? 0 : now;  // differences of infinities would be NaN
      correction[half] = simt::exp2_fast((largest[half] - shift) * scale);
      largest[half] = now;
      offset[half] = shift * scale;
      part[2 * half] = sum[half] * correction[half];
    }
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[n][i] = simt::exp2_fast(s[n][i] * scale - offset[i / 2]);
        part[i] += s[n][i];
      }
#pragma unroll
    for (int half = 0; half < 2; ++half) sum[half] = part[2 * half] + part[2 * half + 1];
  }
};

template <class Tiling, bool kDocuments>
__device__ __forceinline__ void produce(ForwardShared<Tiling>& shared, const simt::TensorMap& query_map,
                                        const simt::TensorMap& key_map, const AttentionHeads& heads,
                                        const Schedule& schedule, const int32_t* starts) {
  constexpr int kQueries = Tiling::kQueries, kKeys = Tiling::kKeys;
  Place<Tiling::kItems> own;
  Place<Tiling::kStages> place;
  int any_head, rank;
  for (int round = 0; schedule.next(round, any_head, rank);) {
    const int head = any_head % heads.heads, batch = any_head / heads.heads, kv_head = head / heads.group();
    Item item = query_item<kQueries, kKeys, kDocuments>(heads, batch, rank, starts);
    item.head = head;
    auto& queries_full = shared.queries_full[own.stage];
    simt::wait(shared.queries_empty[own.stage], own.parity ^ 1);
    shared.items[own.stage] = item;
    simt::arrive_expecting(queries_full, shared.queries[0].kBytes);
    copy_tile(shared.queries[own.stage], query_map, heads.query(head), item.first_row, batch, queries_full);
    own.advance();
#pragma unroll 1
    for (int tile = item.last_tile; tile >= item.first_tile; --tile) {
      auto &keys_full = shared.keys_full[place.stage], &values_full = shared.values_full[place.stage];
      simt::wait(shared.keys_empty[place.stage], place.parity ^ 1);
      simt::arrive_expecting(keys_full, shared.keys[0].kBytes);
      copy_tile(shared.keys[place.stage], key_map, heads.key(kv_head), tile * kKeys, batch, keys_full);
      simt::wait(shared.values_empty[place.stage], place.parity ^ 1);
      simt::arrive_expecting(values_full, shared.values[0].kBytes);
      copy_tile(shared.values[place.stage], key_map, heads.value(kv_head), tile * kKeys, batch, values_full);
      place.advance();
    }
  }
  simt::wait(shared.queries_empty[own.stage], own.parity ^ 1);
  shared.items[own.stage].head = kNoItem;
  simt::arrive(shared.queries_full[own.stage]);
}

template <class Tiling, bool kDocuments>
__device__ __forceinline__ void consume(ForwardShared<Tiling>& shared, const AttentionHeads& heads, float scale,
                                        float scale_to_base_2, const int32_t* starts, bf16* out, float* log_sum_exp,
                                        uint32_t* largest, int consumer) {
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
  Place<Tiling::kStages> key_place, value_place;
  const auto skip_tile = [&] {
    wait_for_turn();
    pass_turn();
    simt::wait(shared.keys_full[key_place.stage], key_place.parity);
    release(shared.keys_empty[key_place.stage]);
    key_place.advance();
    simt::wait(shared.values_full[value_place.stage], value_place.parity);
    release(shared.values_empty[value_place.stage]);
    value_place.advance();
  };
  float most = 0;
  if (consumer == kGroups - 1) pass_turn();

  for (;;) {
    simt::wait(shared.queries_full[own.stage], own.parity);
    const Item item = shared.items[own.stage];
    if (item.head == kNoItem) break;
    const auto documents = starts_of_item<kDocuments>(heads, item, starts);
    auto& queries = shared.queries[own.stage];
    const int first_query = item.position + row, warp_query = item.position + warp_row;
    if (first_query < item.chunk) {
#pragma unroll 1
      for (int tile = item.last_tile; tile >= item.first_tile; --tile) skip_tile();
      __syncwarp();  // all lanes have read the item
      release(shared.queries_empty[own.stage]);
      own.advance();
      continue;
    }
    const int last = min(item.last_tile, (first_query + kGroupRows - 1) / kKeys);
    const int first = min(max(item.first_tile, documents.of(first_query) / kKeys), last);
    const int last_start = documents.last_before(warp_query + 16);
#pragma unroll 1
    for (int tile = item.last_tile; tile > last; --tile) skip_tile();

    float s[1][kKeys / 8][4], accumulated[kHead / 8][4], correction[2];
    uint32_t p[kKeys / 16][4];
    Softmax softmax;
    const auto mask_documents = [&](int tile) {
      if constexpr (kDocuments)
        if (tile * kKeys < last_start) mask_earlier_documents<false>(s, warp_query, tile * kKeys, documents);
    };
    simt::wait(shared.keys_full[key_place.stage], key_place.parity);
    wait_for_turn();
    simt::products_begin();
    row_products_async(s[0], queries, row, shared.keys[key_place.stage]);
    simt::products_commit();
    pass_turn();
    simt::products_wait<0>();
    simt::hold(s[0]);
    release(shared.keys_empty[key_place.stage]);
    key_place.advance();
    mask_later_keys<false>(s, warp_query, last * kKeys, heads.keys);
    mask_documents(last);
    softmax.template add<kDocuments>(s[0], correction, scale_to_base_2);
    pack(p, s[0]);

    bool add = false;
#pragma unroll 1
    for (int tile = last - 1; tile >= first; --tile) {
      simt::wait(shared.keys_full[key_place.stage], key_place.parity);
      wait_for_turn();
      simt::products_begin();
      row_products_async(s[0], queries, row, shared.keys[key_place.stage]);
      simt::products_commit();
      simt::wait(shared.values_full[value_place.stage], value_place.parity);
      simt::products_begin();
      weighted_rows_async(accumulated, p, shared.values[value_place.stage], add);
      simt::products_commit();
      add = true;
      pass_turn();
      simt::products_wait<1>();
      simt::hold(s[0]);
      release(shared.keys_empty[key_place.stage]);
      key_place.advance();
      mask_documents(tile);
      softmax.template add<kDocuments>(s[0], correction, scale_to_base_2);
      simt::products_wait<0>();
      simt::hold(accumulated);
      release(shared.values_empty[value_place.stage]);
      value_place.advance();
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) accumulated[n][i] *= correction[i / 2];
      pack(p, s[0]);
    }
    simt::wait(shared.values_full[value_place.stage], value_place.parity);
    simt::products_begin();
    weighted_rows_async(accumulated, p, shared.values[value_place.stage], add);
    simt::products_commit();
    const int64_t of_head = (int64_t{item.batch} * heads.heads + item.head) * tokens;
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = item.first_row + warp_row + 8 * half + group();  // its number
      const float total = group_sum(softmax.sum[half]);
      factor[half] = kDocuments && total == 0 ? 0 : 1 / total;
      if (simt::in_bounds(query < tokens) && member() == 0)
        log_sum_exp[of_head + query] = softmax.largest[half] * scale + logf(total);
    }
    simt::products_wait<0>();
    simt::hold(accumulated);
    release(shared.values_empty[value_place.stage]);
    value_place.advance();
#pragma unroll 1
    for (int tile = first - 1; tile >= item.first_tile; --tile) skip_tile();

    simt::meet(kStore + consumer, kWarpgroup);  // no product of the warpgroup reads the queries any more
    store_rows(queries, warp_row, accumulated, factor[0], factor[1],
               out + int64_t{item.batch} * tokens * heads.out_width() + heads.query(item.head), heads.out_width(),
               item.first_row + warp_row, tokens, largest != nullptr, most);
    simt::fence_async_proxy();
    __syncwarp();
    release(shared.queries_empty[own.stage]);
    own.advance();
  }
  if (consumer == 0) wait_for_turn();  // takes the last turn, so that no arrival is left at the barrier
  note_largest_of_warp(most, largest);
}

// The tensors of queries, and of keys and values (AttentionHeads), starts (B, T) -> out (B, T, H D), log_sum_exp (B,
// H, T). With kDocuments a query sees no key before its start; without it `starts` is not used. query_map and key_map
// are of the two tensors, with boxes of kQueries and kKeys rows.
template <class Tiling, bool kDocuments>
__global__ void __launch_bounds__(Tiling::kThreads, 1)
    flash_attention_hopper_kernel(const __grid_constant__ simt::TensorMap query_map,
                                  const __grid_constant__ simt::TensorMap key_map, AttentionHeads heads,
                                  Schedule schedule, float scale, float scale_to_base_2,
                                  const int32_t* __restrict__ starts, bf16* __restrict__ out,
                                  float* __restrict__ log_sum_exp, uint32_t* largest) {
  if constexpr (simt::kHopperCode) {
    auto& shared = simt::tile_memory<ForwardShared<Tiling>>();
    if (threadIdx.x == 0) {
      simt::prefetch(query_map);
      simt::prefetch(key_map);
      constexpr int kWarps = 4 * Tiling::kGroups;
      initialize_ring(shared.queries_full, shared.queries_empty, kWarps);
      initialize_ring(shared.keys_full, shared.keys_empty, kWarps);
      initialize_ring(shared.values_full, shared.values_empty, kWarps);
      simt::fence_initialization();
    }
    __syncthreads();
    const int role = warpgroup();
    if (role == 0) {
      simt::give_back_registers<Tiling::kProducerRegisters>();
      if (threadIdx.x == 0) produce<Tiling, kDocuments>(shared, query_map, key_map, heads, schedule, starts);
    } else {
      simt::take_registers<Tiling::kConsumerRegisters>();
      consume<Tiling, kDocuments>(shared, heads, scale, scale_to_base_2, starts, out, log_sum_exp, largest, role - 1);
    }
  } else {
    __trap();
  }
}

template <class Tiling>
void launch_forward(cudaStream_t stream, int multiprocessors, const AttentionShape& s, const bf16* q, const bf16* kv,
                    const int32_t* starts, bf16* out, float* log_sum_exp, uint32_t* largest) {
  const AttentionHeads heads(s);
  const int64_t tiles = heads.tiles(Tiling::kQueries);
  const int64_t blocks = std::min<int64_t>(multiprocessors, s.batch * s.heads * tiles);
  const Schedule schedule = schedule_of(s.batch * s.heads, tiles, blocks,
                                        s.key_rows() * s.head_size * 2 * int64_t{sizeof(bf16)} / heads.group());
  simt::launch(stream, dim3(static_cast<unsigned>(blocks)), dim3(Tiling::kThreads), sizeof(ForwardShared<Tiling>),
               starts ? flash_attention_hopper_kernel<Tiling, true> : flash_attention_hopper_kernel<Tiling, false>,
               head_map(q, s.batch, s.tokens, heads.query_width(), heads.head_size, Tiling::kQueries),
               head_map(kv, s.batch, s.key_rows(), heads.key_width(), heads.head_size, Tiling::kKeys), heads, schedule,
               heads.scale(), heads.scale() * kLog2E, starts, out, log_sum_exp, largest);
}

template <class Tiling>
void forward(const KernelCall& call) {
  const AttentionShape s = attention_shape(call, 0);
  launch_forward<Tiling>(call.cuda->stream(), call.cuda->properties().multiprocessors, s, call.in<bf16>(0),
                         call.in<bf16>(s.keys ? 2 : 0), call.in_int(1), call.out<bf16>(0), call.out(1),
                         largest_of(call));
}

}  // namespace

bool has_flash_attention_hopper(const CudaDevice& device, const AttentionShape& s) {
#if defined(TRAIN_GPT_SM_90A) || defined(LLM_TEST_BED)
  const auto is_even = [](int64_t tokens) { return tokens % kGroupRows == 0; };
  return device.properties().compute_capability == 90 && (s.head_size == 64 || s.head_size == 128) &&
         (is_even(s.firsts[0]) || s.firsts[0] >= s.key_rows()) &&
         (s.chunks == 1 || (is_even(s.chunk()) && is_even(s.firsts[1])));
#else
  return false;
#endif
}

// These tilings were the fastest on an H100.
void flash_attention_hopper(const KernelCall& call) {
  attention_shape(call, 0).head_size == 64 ? forward<ForwardTiling<64, 128, 2, 2, false>>(call)
                                           : forward<ForwardTiling<128, 64, 3, 2, true>>(call);
}

void flash_attention_backward_hopper(const KernelCall& call) {
  const AttentionShape s = attention_shape(call, 1);
  const bf16* const q = call.in<bf16>(1);
  bf16* const d_q = call.out<bf16>(0);
  const BackwardTensors tensors = {
      call.in<bf16>(0), q,   s.keys ? call.in<bf16>(5) : q,    call.in<bf16>(2),         call.in(3),
      call.in_int(4),   d_q, s.keys ? call.out<bf16>(2) : d_q, call.workspace<float2>(), largest_of(call)};
  query_gradient_hopper(call.cuda->stream(), call.cuda->properties().multiprocessors, s, tensors);
  key_value_gradient_hopper(call.cuda->stream(), call.cuda->properties().multiprocessors, s, tensors);
}

}  // namespace llm::cuda
