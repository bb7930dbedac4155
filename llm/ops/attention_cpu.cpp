// Forward attention. A thread takes the queries of one head in tiles of kColumns, and reads keys and values in place
// where it can. Keys come in blocks of kKeyBlock, counted from key 0: up to that length the softmax needs no rescaling,
// and a query's bits depend neither on where its tile begins nor on how many queries there are. (With documents the
// blocks count from the first key that the tile sees, a multiple of kColumns.)
#include "llm/ops/attention_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "llm/ops/attention_tiles_cpu.h"

namespace llm {
namespace {

using namespace attention;

constexpr int64_t kKeyBlock = 512;    // the tile of scores, 64 KiB with 32 queries, stays in L2
constexpr int64_t kQueryChunk = 128;  // the fewest queries of an item of work

// The queries of a head in one chunk. Query t, which is at position t, sees the keys up to t.
struct HeadTask {
  HeadRows queries, keys, values;
  int64_t key_count;
  float* out;  // row t at out + (t - queries.shift) * out_stride
  int64_t out_stride;
  float* log_sum_exp;  // (T), or null: that of query t at t - queries.shift
  QueryStarts starts;
};

struct ForwardScratch {
  float *queries, *scores, *sums, *values;
  // `stride`: elements from the values of one key to those of the next.
  static int64_t floats(int64_t keys, int64_t head_size, int64_t stride) {
    return round_up(2 * head_size * kColumns + kKeyBlock * kColumns + packed_floats(keys, head_size, stride), 16);
  }
  ForwardScratch(float* p, int64_t head_size) {
    queries = p;
    scores = queries + head_size * kColumns;
    sums = scores + kKeyBlock * kColumns;
    values = sums + head_size * kColumns;
  }
};

// For one vector of queries and keys [begin, end): scores become exp(score - maximum). Updates the running maximum and
// sum of each query; returns the factors by which the earlier sums must be multiplied.
template <bool kDocuments>
Vec softmax_column(float* scores, int64_t begin, int64_t end, int64_t first_query, IntVec starts, Vec& maximum,
                   Vec& sum) {
  constexpr int kChains = 4;  // independent maxima and sums, so that none waits for the one before
  const auto at = [&](int64_t key) { return scores + (key - begin) * kColumns; };
  // The end of the keys that all of these queries see, and of those that at least one sees.
  const int64_t plain = kDocuments ? begin : std::clamp(first_query + 1, begin, end),
                seen = std::clamp(first_query + kLanes, begin, end);
  Vec tops[kChains];
  for (Vec& top : tops) top = maximum;
  int64_t key = begin;
  for (; key + kChains <= plain; key += kChains)
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) tops[c] = simd::max(tops[c], simd::load(at(key + c)));
  for (; key < seen; ++key) {
    Vec v = mask(simd::load(at(key)), key, first_query, kMinusInfinity);
    if (kDocuments) v = mask_earlier_documents(v, key, starts, kHidden);
    if (key >= plain) simd::store(at(key), v);
    tops[0] = simd::max(tops[0], v);
  }
  const Vec top = simd::max(simd::max(tops[0], tops[1]), simd::max(tops[2], tops[3]));
  const Vec scale = simd::exp(maximum - top);
  Vec totals[kChains] = {};
  const auto exponential = [&](int64_t k, Vec& total) {
    const Vec probability = simd::exp(simd::load(at(k)) - top);
    simd::store(at(k), probability);
    total += probability;
  };
  for (key = begin; key + kChains <= seen; key += kChains)
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) exponential(key + c, totals[c]);
  for (int c = 0; key < seen; ++key, ++c) exponential(key, totals[c]);
  for (; key < end; ++key) simd::store(at(key), Vec{});  // the scores of these keys were not computed
  maximum = top;
  sum = sum * scale + ((totals[0] + totals[1]) + (totals[2] + totals[3]));
  return scale;
}

// The outputs of queries [begin, end), at most kColumns of them.
template <bool kDocuments>
void forward_tile(const HeadTask& task, int64_t begin, int64_t end, Columns values, const ForwardScratch& scratch,
                  RowsAhead& ahead) {
  const int64_t size = task.queries.size, count = end - begin;
  microkernel::pack_columns(true, task.queries.row(begin), task.queries.stride, count, size, scratch.queries,
                            1.0f / std::sqrt(static_cast<float>(size)));
  Vec maximum[2] = {simd::broadcast(kMinusInfinity), simd::broadcast(kMinusInfinity)}, sum[2] = {};
  alignas(64) float factors[kColumns];
  IntVec starts[2] = {};
  if (kDocuments)
    for (int j = 0; j < 2; ++j) starts[j] = task.starts.lanes(begin + j * kLanes, end);
  const int64_t first_key = kDocuments ? task.starts.first_key(begin) : 0, end_key = std::min(end, task.key_count);
  for (int64_t key = first_key; key < end_key; key += kKeyBlock) {
    const int64_t key_end = std::min(end_key, key + kKeyBlock);
    multiply_keys(task.keys, key, key_end, scratch.queries, begin, scratch.scores, kColumns, ahead);
    for (int j = 0; j < 2; ++j)
      simd::store(factors + j * kLanes, softmax_column<kDocuments>(scratch.scores + j * kLanes, key, key_end,
                                                                   begin + j * kLanes, starts[j], maximum[j], sum[j]));
    if (key > first_key)
      for (int64_t i = 0; i < count * size; ++i) scratch.sums[i] *= factors[i / size];
    for_panels(0, count, [&](int64_t i, int64_t rows) {
      const int64_t seen = std::min(key_end, begin + i + rows) - key;  // the keys after these have probability 0
      if (seen > 0)
        multiply_channels(rows, seen, scratch.scores + i, 1, kColumns, values.from_row(key), size,
                          scratch.sums + i * size, size, key > first_key);
    });
  }
  if (kDocuments && first_key >= end_key) std::fill_n(scratch.sums, count * size, 0.0f);
  for (int j = 0; j < 2; ++j) {
    Vec factor = simd::broadcast(1.0f) / sum[j];
    if (kDocuments) {  // some queries may see no key at all
      const auto sees = maximum[j] > simd::broadcast(kHidden);
      factor = sees ? factor : Vec{};
      maximum[j] = sees ? maximum[j] : simd::broadcast(kMinusInfinity);
    }
    simd::store(factors + j * kLanes, factor);
  }
  const int64_t first_row = begin - task.queries.shift;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < size; ++c)
      task.out[(first_row + i) * task.out_stride + c] = scratch.sums[i * size + c] * factors[i];
  if (task.log_sum_exp)
    for (int64_t i = 0; i < count; ++i)
      task.log_sum_exp[first_row + i] = maximum[i / kLanes][i % kLanes] + std::log(sum[i / kLanes][i % kLanes]);
}

// Into how many parts a chunk's queries of a head are cut, so that the whole team has work. The bits do not depend on
// it.
int64_t query_parts(const AttentionShape& s, int threads) {
  const int64_t heads = std::max<int64_t>(1, s.batch * s.kv_heads);
  return std::clamp<int64_t>(ceil_div(8 * threads, heads), 1, std::max<int64_t>(1, s.chunk() / kQueryChunk));
}

// Computes all heads; make_task(batch, head, chunk) describes one query head. The query heads of a group share keys and
// values.
template <class MakeTask>
void forward_all(ThreadTeam& threads, const AttentionShape& s, float* workspace, MakeTask make_task) {
  const int64_t group = s.heads / s.kv_heads, parts = query_parts(s, threads.size());
  const int64_t length = round_up(ceil_div(s.chunk(), parts), kColumns);  // of a part
  const int64_t items = s.batch * s.kv_heads * parts * s.chunks;
  const int64_t floats = ForwardScratch::floats(s.key_rows(), s.head_size, s.key_width());
  workspace = aligned(workspace);
  struct Item {
    int64_t chunk, begin, end, batch, kv_head;  // begin, end: positions
  };
  const auto item_at = [&](int64_t index) {
    // The last parts have the most keys. They come first, so that no thread is still busy with one at the end.
    const int64_t part = parts * s.chunks - 1 - index / (s.batch * s.kv_heads), chunk = part / parts;
    const int64_t first = s.firsts[static_cast<size_t>(chunk)], begin = first + part % parts * length;
    return Item{chunk, begin, std::min(first + s.chunk(), begin + length), index % (s.batch * s.kv_heads) / s.kv_heads,
                index % s.kv_heads};
  };
  threads.for_items(items, [&](int64_t index, int rank) {
    const Item item = item_at(index);
    if (item.begin >= item.end) return;
    const ForwardScratch scratch(workspace + rank * floats, s.head_size);
    RowsAhead ahead;
    if (index + 1 < items) {
      const Item following = item_at(index + 1);
      const HeadTask task = make_task(following.batch, following.kv_head * group, following.chunk);
      const int64_t keys = std::min(following.end, s.key_rows());
      ahead.add(task.queries.by_number(), following.end - task.queries.shift), ahead.add(task.keys, keys);
      ahead.add(task.values, keys);
    }
    const HeadTask first = make_task(item.batch, item.kv_head * group, item.chunk);
    const Columns values = columns_of(first.values, 0, std::min(item.end, s.key_rows()), scratch.values);
    for (int64_t head = item.kv_head * group; head < (item.kv_head + 1) * group; ++head) {
      const HeadTask task = make_task(item.batch, head, item.chunk);
      for (int64_t query = item.begin; query < item.end; query += kColumns)
        (task.starts ? forward_tile<true> : forward_tile<false>)(task, query, std::min(item.end, query + kColumns),
                                                                 values, scratch, ahead);
    }
  });
}

}  // namespace

int64_t attention_workspace(const AttentionShape& s, int threads) {
  return threads * ForwardScratch::floats(s.key_rows(), s.head_size, s.key_width()) + 16;
}

void attention_forward(ThreadTeam& threads, const AttentionShape& s, const float* qkv, float* out, float* log_sum_exp,
                       float* workspace, const int32_t* starts, const float* keys_values) {
  const int64_t group = s.heads / s.kv_heads;
  if (!s.keys) keys_values = qkv;
  forward_all(threads, s, workspace, [&](int64_t batch, int64_t head, int64_t chunk) {
    const auto keys = [&](int64_t kv_head) {
      return HeadRows{keys_values + batch * s.key_rows() * s.key_width() + (s.first_key_head() + kv_head) * s.head_size,
                      s.key_width(), s.head_size};
    };
    return HeadTask{
        {qkv + batch * s.tokens * s.query_width() + head * s.head_size, s.query_width(), s.head_size, s.shift(chunk)},
        keys(head / group),
        keys(s.kv_heads + head / group),
        s.key_rows(),
        out + (batch * s.tokens * s.heads + head) * s.head_size,
        s.heads * s.head_size,
        log_sum_exp + (batch * s.heads + head) * s.tokens,
        {starts ? starts + batch * s.tokens : nullptr, s.shift(chunk)}};
  });
}

}  // namespace llm
