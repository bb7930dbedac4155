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
constexpr int64_t kFewTokens = 8;     // up to so many new tokens, reading the cache once for each beats packing it
constexpr int64_t kSplitKeys = 256;   // keys that one item of the decoding kernel reads
constexpr int64_t kRowsAhead = 16;    // how many keys ahead the decoding kernel prefetches

// One query head. Query t stands at position `position` + t and sees the keys up to that position.
struct HeadTask {
  HeadRows queries, keys, values;
  float* out;  // row t at out + t * out_stride
  int64_t out_stride;
  float* log_sum_exp;  // (T), or null
  int64_t position;
  const int32_t* starts = nullptr;  // (T), or null: where the document of each query begins
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
  const int64_t size = task.queries.size, count = end - begin, first = task.position + begin, limit = first + count;
  microkernel::pack_columns(true, task.queries.row(begin), task.queries.stride, count, size, scratch.queries,
                            1.0f / std::sqrt(static_cast<float>(size)));
  Vec maximum[2] = {simd::broadcast(kMinusInfinity), simd::broadcast(kMinusInfinity)}, sum[2] = {};
  alignas(64) float factors[kColumns];
  IntVec starts[2] = {};
  if (kDocuments)
    for (int j = 0; j < 2; ++j) starts[j] = starts_of(task.starts, begin + j * kLanes, end);
  const int64_t first_key = kDocuments ? first_key_of(task.starts, begin) : 0;
  for (int64_t key = first_key; key < limit; key += kKeyBlock) {
    const int64_t key_end = std::min(limit, key + kKeyBlock);
    multiply_keys(task.keys, key, key_end, scratch.queries, first, scratch.scores, kColumns, ahead);
    for (int j = 0; j < 2; ++j)
      simd::store(factors + j * kLanes, softmax_column<kDocuments>(scratch.scores + j * kLanes, key, key_end,
                                                                   first + j * kLanes, starts[j], maximum[j], sum[j]));
    if (key > first_key)
      for (int64_t i = 0; i < count * size; ++i) scratch.sums[i] *= factors[i / size];
    for_panels(0, count, [&](int64_t i, int64_t rows) {
      const int64_t seen = std::min(key_end, first + i + rows) - key;  // the keys after these have probability 0
      if (seen > 0)
        multiply_channels(rows, seen, scratch.scores + i, 1, kColumns, values.from_row(key), size,
                          scratch.sums + i * size, size, key > first_key);
    });
  }
  for (int j = 0; j < 2; ++j) simd::store(factors + j * kLanes, simd::broadcast(1.0f) / sum[j]);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < size; ++c)
      task.out[(begin + i) * task.out_stride + c] = scratch.sums[i * size + c] * factors[i];
  if (task.log_sum_exp)
    for (int64_t i = 0; i < count; ++i)
      task.log_sum_exp[begin + i] = maximum[i / kLanes][i % kLanes] + std::log(sum[i / kLanes][i % kLanes]);
}

// Into how many chunks the queries of a head are cut, so that the whole team has work. The bits do not depend on it.
int64_t query_chunks(const AttentionShape& s, int threads) {
  const int64_t heads = std::max<int64_t>(1, s.batch * s.kv_heads);
  return std::clamp<int64_t>(ceil_div(8 * threads, heads), 1, std::max<int64_t>(1, s.tokens / kQueryChunk));
}

// Computes all heads; make_task(batch, head) describes one query head. The query heads of a group share keys and
// values.
template <class MakeTask>
void forward_all(ThreadTeam& threads, const AttentionShape& s, int64_t position, float* workspace, MakeTask make_task) {
  const int64_t group = s.heads / s.kv_heads, chunks = query_chunks(s, threads.size());
  const int64_t chunk = round_up(ceil_div(s.tokens, chunks), kColumns);
  const int64_t items = s.batch * s.kv_heads * chunks;
  const int64_t floats =
      ForwardScratch::floats(position + s.tokens, s.head_size, make_task(int64_t{0}, int64_t{0}).values.stride);
  workspace = aligned(workspace);
  struct Item {
    int64_t begin, end, batch, kv_head;
  };
  const auto item_at = [&](int64_t index) {
    // The last chunks have the most keys. They come first, so that no thread is still busy with one at the end.
    const int64_t begin = (chunks - 1 - index / (s.batch * s.kv_heads)) * chunk;
    return Item{begin, std::min(s.tokens, begin + chunk), index % (s.batch * s.kv_heads) / s.kv_heads,
                index % s.kv_heads};
  };
  threads.for_items(items, [&](int64_t index, int rank) {
    const Item item = item_at(index);
    if (item.begin >= item.end) return;
    const int64_t key_count = position + item.end;
    const ForwardScratch scratch(workspace + rank * floats, s.head_size);
    RowsAhead ahead;
    if (index + 1 < items) {
      const Item following = item_at(index + 1);
      const HeadTask task = make_task(following.batch, following.kv_head * group);
      ahead.add(task.queries, following.end), ahead.add(task.keys, following.end);
      ahead.add(task.values, following.end);
    }
    const HeadTask first = make_task(item.batch, item.kv_head * group);
    const Columns values = columns_of(first.values, 0, key_count, scratch.values);
    for (int64_t head = item.kv_head * group; head < (item.kv_head + 1) * group; ++head) {
      const HeadTask task = make_task(item.batch, head);
      for (int64_t query = item.begin; query < item.end; query += kColumns)
        (task.starts ? forward_tile<true> : forward_tile<false>)(task, query, std::min(item.end, query + kColumns),
                                                                 values, scratch, ahead);
    }
  });
}

// Decoding: for a part of the keys the largest score, the sum of exp(score - largest), and the sum of the values
// weighted by these exponentials.
struct Partial {
  float* data;  // maximum, sum, values[head_size]
  float& maximum() const { return data[0]; }
  float& sum() const { return data[1]; }
  float* values() const { return data + 2; }
};

void attend_part(const float* query, HeadRows keys, HeadRows values, int64_t begin, int64_t end, float* scores,
                 Partial out) {
  const int64_t size = keys.size, whole = size / kLanes * kLanes;
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  float maximum = kMinusInfinity;
  for (int64_t key = begin; key < end; ++key) {
    // Rows lie far apart in the key-value cache, so the hardware does not prefetch them. The values come in meanwhile.
    for (int64_t c = 0; c < size; c += 64 / 4) {
      __builtin_prefetch(keys.row(key + kRowsAhead) + c);
      __builtin_prefetch(values.row(key) + c);
    }
    Vec dot{};
    for (int64_t c = 0; c < whole; c += kLanes) dot += simd::load(query + c) * simd::load(keys.row(key) + c);
    if (whole < size)
      dot += simd::load_part(query + whole, size - whole) * simd::load_part(keys.row(key) + whole, size - whole);
    scores[key - begin] = simd::reduce_add(dot) * scale;
    maximum = std::max(maximum, scores[key - begin]);
  }
  for (int64_t i = end - begin; i % kLanes != 0; ++i) scores[i] = kMinusInfinity;
  Vec sum{};
  for (int64_t i = 0; i < end - begin; i += kLanes) {
    const Vec probability = simd::exp(simd::load(scores + i) - simd::broadcast(maximum));
    simd::store(scores + i, probability);
    sum += probability;
  }
  out.maximum() = maximum;
  out.sum() = simd::reduce_add(sum);
  constexpr int kVectors = 4;
  int64_t c = 0;
  for (; c + kVectors * kLanes <= size; c += kVectors * kLanes) {
    Vec total[kVectors] = {};
    for (int64_t key = begin; key < end; ++key)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j)
        total[j] += simd::broadcast(scores[key - begin]) * simd::load(values.row(key) + c + j * kLanes);
    for (int j = 0; j < kVectors; ++j) simd::store(out.values() + c + j * kLanes, total[j]);
  }
  for (; c < size; c += kLanes) {
    const int64_t lanes = std::min<int64_t>(kLanes, size - c);
    Vec total{};
    for (int64_t key = begin; key < end; ++key)
      total += simd::broadcast(scores[key - begin]) * simd::load_part(values.row(key) + c, lanes);
    simd::store_part(out.values() + c, total, lanes);
  }
}

// Adds up the parts of a query in the order of their keys.
void combine_parts(const float* parts, int64_t stride, int64_t count, int64_t size, float* out) {
  float maximum = kMinusInfinity, sum = 0;
  for (int64_t p = 0; p < count; ++p) maximum = std::max(maximum, parts[p * stride]);
  std::fill_n(out, size, 0.0f);
  for (int64_t p = 0; p < count; ++p) {
    const float* part = parts + p * stride;
    const float weight = std::exp(part[0] - maximum);
    sum += weight * part[1];
    for (int64_t c = 0; c < size; ++c) out[c] += weight * part[2 + c];
  }
  for (int64_t c = 0; c < size; ++c) out[c] /= sum;
}

template <class MakeTask>
void decode_all(ThreadTeam& threads, const AttentionShape& s, int64_t position, float* workspace, MakeTask make_task) {
  const int64_t group = s.heads / s.kv_heads, splits = ceil_div(position + s.tokens, kSplitKeys),
                stride = s.head_size + 2;
  float* scores = workspace;                            // (threads, kSplitKeys)
  float* parts = scores + threads.size() * kSplitKeys;  // (B, H, tokens, splits, stride)
  const auto part = [&](int64_t batch, int64_t head, int64_t token, int64_t split) {
    return parts + (((batch * s.heads + head) * s.tokens + token) * splits + split) * stride;
  };
  const int64_t items = s.batch * s.kv_heads * splits;
  threads.for_items(items, [&](int64_t item, int rank) {
    const int64_t split = item % splits, kv_head = item / splits % s.kv_heads, batch = item / splits / s.kv_heads;
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      const HeadTask task = make_task(batch, head);
      for (int64_t token = 0; token < s.tokens; ++token) {
        const int64_t begin = split * kSplitKeys, end = std::min(position + token + 1, begin + kSplitKeys);
        if (begin < end)
          attend_part(task.queries.row(token), task.keys, task.values, begin, end, scores + rank * kSplitKeys,
                      {part(batch, head, token, split)});
      }
    }
  });
  threads.for_blocks(s.batch * s.heads * s.tokens, 8, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t token = row % s.tokens, head = row / s.tokens % s.heads, batch = row / s.tokens / s.heads;
      const HeadTask task = make_task(batch, head);
      combine_parts(part(batch, head, token, 0), stride, ceil_div(position + token + 1, kSplitKeys), s.head_size,
                    task.out + token * task.out_stride);
    }
  });
}

}  // namespace

int64_t attention_workspace(const AttentionShape& s, int threads) {
  const int64_t stride = (s.heads + 2 * s.kv_heads) * s.head_size;
  return threads * ForwardScratch::floats(s.tokens, s.head_size, stride) + 16;
}

void attention_forward(ThreadTeam& threads, const AttentionShape& s, const float* qkv, float* out, float* log_sum_exp,
                       float* workspace, const int32_t* starts) {
  const int64_t stride = (s.heads + 2 * s.kv_heads) * s.head_size, group = s.heads / s.kv_heads;
  forward_all(threads, s, 0, workspace, [&](int64_t batch, int64_t head) {
    const auto rows = [&](int64_t column) {
      return HeadRows{qkv + batch * s.tokens * stride + column * s.head_size, stride, s.head_size};
    };
    const int64_t kv_head = head / group;
    return HeadTask{rows(head),
                    rows(s.heads + kv_head),
                    rows(s.heads + s.kv_heads + kv_head),
                    out + (batch * s.tokens * s.heads + head) * s.head_size,
                    s.heads * s.head_size,
                    log_sum_exp + (batch * s.heads + head) * s.tokens,
                    0,
                    starts ? starts + batch * s.tokens : nullptr};
  });
}

int64_t attention_cached_workspace(const AttentionShape& s, int64_t capacity, int threads) {
  const int64_t few =
      s.batch * s.heads * std::min(s.tokens, kFewTokens) * ceil_div(capacity, kSplitKeys) * (s.head_size + 2) +
      threads * kSplitKeys;
  return std::max(few, threads * ForwardScratch::floats(capacity, s.head_size, s.kv_heads * s.head_size)) + 16;
}

void attention_cached(ThreadTeam& threads, const AttentionShape& s, int64_t position, int64_t capacity,
                      const float* qkv, float* key_cache, float* value_cache, float* out, float* workspace) {
  const int64_t stride = (s.heads + 2 * s.kv_heads) * s.head_size, group = s.heads / s.kv_heads;
  const int64_t cache_stride = s.kv_heads * s.head_size;
  threads.for_blocks(s.batch * s.tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* key = qkv + row * stride + s.heads * s.head_size;
      const int64_t at = (row / s.tokens * capacity + position + row % s.tokens) * cache_stride;
      std::memcpy(key_cache + at, key, static_cast<size_t>(cache_stride) * sizeof(float));
      std::memcpy(value_cache + at, key + cache_stride, static_cast<size_t>(cache_stride) * sizeof(float));
    }
  });
  const auto make_task = [&](int64_t batch, int64_t head) {
    const int64_t in_cache = batch * capacity * cache_stride + head / group * s.head_size;
    return HeadTask{{qkv + batch * s.tokens * stride + head * s.head_size, stride, s.head_size},
                    {key_cache + in_cache, cache_stride, s.head_size},
                    {value_cache + in_cache, cache_stride, s.head_size},
                    out + (batch * s.tokens * s.heads + head) * s.head_size,
                    s.heads * s.head_size,
                    nullptr,
                    position};
  };
  if (s.tokens <= kFewTokens)
    decode_all(threads, s, position, workspace, make_task);
  else
    forward_all(threads, s, position, workspace, make_task);
}

}  // namespace llm
