// Backward attention (Dao et al. 2022, algorithm 4, with the two loops swapped). For each block of queries of a head a
// thread computes the probabilities P again from the saved log-sum-exp, and then
//   dV += P^T dO,  dS = P * (dO V^T - D) / sqrt(head size),  dK += dS^T Q,  dQ = dS K,
// where D = rowsum(dO * O). A lane stands for a query, so memory holds P^T and dS^T: a row for each key.
#include <algorithm>
#include <cmath>
#include <utility>

#include "llm/ops/attention_cpu.h"
#include "llm/ops/attention_tiles_cpu.h"

namespace llm {
namespace {

using namespace attention;

constexpr int64_t kQueryBlock = 2 * kColumns;  // the depth (k) of the products for dK and dV
constexpr int64_t kKeyBlock = 256;      // P^T and dS^T (kKeyBlock, kQueryBlock) take 128 KiB together with 16 lanes
constexpr int64_t kWantedItems = 16;    // with fewer heads than this, the queries of a head go to several items
constexpr int64_t kLeastQueries = 128;  // of an item, so that packing its keys pays

// Into how many items the queries of a key-value head are split. The items' sums for dK and dV are added in order, so
// the number must not depend on the team.
int64_t query_splits(const AttentionShape& s) {
  const int64_t heads = std::max<int64_t>(1, s.batch * s.kv_heads);
  return std::clamp<int64_t>(ceil_div(kWantedItems, heads), 1, std::max<int64_t>(1, s.tokens / kLeastQueries));
}

// The buffers of one thread. B: the right operand of the product for the matrix that is named.
struct Scratch {
  float* key_columns;    // (T', D), B for dQ, if it must be packed
  float* query_panels;   // (2, D, kColumns), multiplied by the scale, B for the scores
  float* d_out_panels;   // (2, D, kColumns), B for dP
  float* query_columns;  // (kQueryBlock, D), B for dK, if it must be packed
  float* d_out_columns;  // (kQueryBlock, D), B for dV, if it must be packed
  float* probabilities;  // (kKeyBlock, kQueryBlock)
  float* d_scores;       // (kKeyBlock, kQueryBlock)
  float* d_keys_values;  // (2, T', D)

  template <class Take>
  void lay_out(const AttentionShape& s, Take take) {
    const int64_t keys = s.key_rows(), size = s.head_size;
    key_columns = take(packed_floats(keys, size, s.key_width()));
    query_panels = take(2 * size * kColumns);
    d_out_panels = take(2 * size * kColumns);
    query_columns = take(packed_floats(kQueryBlock, size, s.query_width()));
    d_out_columns = take(packed_floats(kQueryBlock, size, s.heads * size));
    probabilities = take(kKeyBlock * kQueryBlock);
    d_scores = take(kKeyBlock * kQueryBlock);
    d_keys_values = take(2 * keys * size);
  }
  Scratch(float* p, const AttentionShape& s) {
    lay_out(s, [&](int64_t floats) { return std::exchange(p, p + round_up(floats, 16)); });
  }
  static int64_t floats(const AttentionShape& s) {
    int64_t total = 0;
    Scratch measured(nullptr, {});
    measured.lay_out(s, [&](int64_t floats) {
      total += round_up(floats, 16);
      return nullptr;
    });
    return total;
  }
};

// A query head in one chunk, whose queries are numbered by their positions t.
struct Head {
  HeadRows queries, keys, values, out, d_out;
  const float* log_sum_exp;  // (T), that of query t at t - queries.shift
  float* d_queries;          // rows at d_queries + (t - queries.shift) * d_stride
  int64_t d_stride;
  QueryStarts starts;
};

// For one vector of queries and keys [begin, end): scores become probabilities, and d_scores, which holds dP, becomes
// dS.
template <bool kDocuments>
void softmax_backward_column(float* scores, float* d_scores, int64_t begin, int64_t end, int64_t first_query,
                             IntVec starts, Vec log_sum_exp, Vec row_sum, float scale) {
  for (int64_t key = begin; key < end; ++key) {
    float* at = scores + (key - begin) * kQueryBlock;
    float* d_at = d_scores + (key - begin) * kQueryBlock;
    if (key >= first_query + kLanes) {  // none of these queries sees the key, and its scores were not computed
      simd::store(at, Vec{});
      simd::store(d_at, Vec{});
      continue;
    }
    Vec probability = mask(simd::exp(simd::load(at) - log_sum_exp), key, first_query, 0.0f);
    if (kDocuments) probability = mask_earlier_documents(probability, key, starts, 0.0f);
    simd::store(at, probability);
    simd::store(d_at, mask(probability * (simd::load(d_at) - row_sum) * scale, key, first_query, 0.0f));
  }
}

float dot(const float* a, const float* b, int64_t count) {
  Vec sum{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum += simd::load(a + i) * simd::load(b + i);
  if (i < count) sum += simd::load_part(a + i, count - i) * simd::load_part(b + i, count - i);
  return simd::reduce_add(sum);
}

// The gradients from queries [first, first + count) of one head, count <= kQueryBlock.
template <bool kDocuments>
void backward_block(const Head& head, Columns key_columns, int64_t keys, int64_t first, int64_t count,
                    const Scratch& scratch, RowsAhead& ahead) {
  const int64_t size = head.queries.size, panel = size * kColumns, first_row = first - head.queries.shift;
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  alignas(64) float log_sum_exp[kQueryBlock] = {}, row_sum[kQueryBlock] = {};
  for (int64_t i = 0; i < count; ++i) {
    log_sum_exp[i] = head.log_sum_exp[first_row + i];
    row_sum[i] = dot(head.out.row(first + i), head.d_out.row(first + i), size);
  }
  const int64_t panels = ceil_div(count, kColumns);
  for (int64_t j = 0; j < panels; ++j) {
    const int64_t query = first + j * kColumns, queries = std::min<int64_t>(kColumns, first + count - query);
    microkernel::pack_columns(true, head.queries.row(query), head.queries.stride, queries, size,
                              scratch.query_panels + j * panel, scale);
    microkernel::pack_columns(true, head.d_out.row(query), head.d_out.stride, queries, size,
                              scratch.d_out_panels + j * panel);
  }
  const Columns query_columns = columns_of(head.queries, first, count, scratch.query_columns),
                d_out_columns = columns_of(head.d_out, first, count, scratch.d_out_columns);

  const int64_t limit = first + count, end_key = std::min(limit, keys);
  float* d_keys = scratch.d_keys_values;
  float* d_values = d_keys + keys * size;
  const int64_t first_key = kDocuments ? head.starts.first_key(first) : 0;
  for (int64_t key = first_key; key < end_key; key += kKeyBlock) {
    const int64_t key_end = std::min(end_key, key + kKeyBlock);
    for (int64_t j = 0; j < panels; ++j) {
      const int64_t query = first + j * kColumns;
      // To the end of the last panel of keys that this tile sees a part of.
      const int64_t seen = std::min(key_end, round_up(query + kColumns, kColumns));
      if (seen <= key) continue;
      float* scores = scratch.probabilities + j * kColumns;
      float* d_scores = scratch.d_scores + j * kColumns;
      multiply_keys(head.keys, key, seen, scratch.query_panels + j * panel, query, scores, kQueryBlock, ahead);
      multiply_keys(head.values, key, seen, scratch.d_out_panels + j * panel, query, d_scores, kQueryBlock, ahead);
      for (int64_t half = 0; half < kColumns; half += kLanes)
        softmax_backward_column<kDocuments>(scores + half, d_scores + half, key, seen, query + half,
                                            kDocuments ? head.starts.lanes(query + half, limit) : IntVec{},
                                            simd::load(log_sum_exp + j * kColumns + half),
                                            simd::load(row_sum + j * kColumns + half), scale);
    }
    for_panels(key, key_end, [&](int64_t row, int64_t rows) {
      const int64_t skipped = std::max<int64_t>(0, row - first);  // queries that come before the panel's first key
      const int64_t at = (row - key) * kQueryBlock + skipped;
      multiply_channels(rows, count - skipped, scratch.probabilities + at, kQueryBlock, 1,
                        d_out_columns.from_row(skipped), size, d_values + row * size, size, true);
      multiply_channels(rows, count - skipped, scratch.d_scores + at, kQueryBlock, 1, query_columns.from_row(skipped),
                        size, d_keys + row * size, size, true);
    });
    for_panels(0, count, [&](int64_t i, int64_t rows) {
      const int64_t seen = std::min(key_end, first + i + rows) - key;
      if (seen > 0)
        multiply_channels(rows, seen, scratch.d_scores + i, 1, kQueryBlock, key_columns.from_row(key), size,
                          head.d_queries + (first_row + i) * head.d_stride, head.d_stride, key > first_key);
    });
  }
  if (kDocuments && first_key >= end_key)
    for (int64_t i = 0; i < count; ++i) std::fill_n(head.d_queries + (first_row + i) * head.d_stride, size, 0.0f);
}

}  // namespace

int64_t attention_backward_workspace(const AttentionShape& s, int threads) {
  const int64_t splits = query_splits(s);
  const int64_t partial = splits > 1 ? splits * s.batch * s.kv_heads * 2 * s.key_rows() * s.head_size : 0;
  return threads * Scratch::floats(s) + partial + 16;
}

void attention_backward(ThreadTeam& threads, const AttentionShape& s, const float* qkv, const float* out,
                        const float* log_sum_exp, const float* d_out, float* d_qkv, float* workspace,
                        const int32_t* starts, const float* keys_values, float* d_keys_values) {
  const int64_t T = s.tokens, keys = s.key_rows(), D = s.head_size, group = s.heads / s.kv_heads;
  const int64_t stride = s.query_width(), key_stride = s.key_width(), out_stride = s.heads * D;
  const int64_t splits = query_splits(s), kv_heads = s.batch * s.kv_heads, items = kv_heads * splits;
  if (!s.keys) keys_values = qkv, d_keys_values = d_qkv;
  workspace = aligned(workspace);
  float* partial = workspace + threads.size() * Scratch::floats(s);  // (B K, splits, 2, T', D)

  // Writes rows [begin, end) of dK and dV of a key-value head: the sum of the parts of its items.
  const auto store = [&](int64_t kv, const float* parts, int64_t count, int64_t begin, int64_t end) {
    for (int part = 0; part < 2; ++part)
      for (int64_t t = begin; t < end; ++t) {
        float* to = d_keys_values + (kv / s.kv_heads * keys + t) * key_stride +
                    (s.first_key_head() + part * s.kv_heads + kv % s.kv_heads) * D;
        const float* from = parts + (part * keys + t) * D;
        std::copy_n(from, D, to);
        for (int64_t split = 1; split < count; ++split)
          for (int64_t c = 0; c < D; ++c) to[c] += from[split * 2 * keys * D + c];
      }
  };

  threads.for_items(items, [&](int64_t item, int rank) {
    Scratch scratch(workspace + rank * Scratch::floats(s), s);
    const int64_t kv = item / splits, split = item % splits, batch = kv / s.kv_heads, kv_head = kv % s.kv_heads;
    const auto head_at = [&](int64_t of_batch, int64_t head, int64_t chunk) {
      const auto rows = [&](const float* data, int64_t row_stride) {
        return HeadRows{data + of_batch * T * row_stride + head * D, row_stride, D, s.shift(chunk)};
      };
      const auto key_rows = [&](int64_t column) {
        return HeadRows{keys_values + of_batch * keys * key_stride + (s.first_key_head() + column) * D, key_stride, D};
      };
      return Head{rows(qkv, stride),
                  key_rows(head / group),
                  key_rows(s.kv_heads + head / group),
                  rows(out, out_stride),
                  rows(d_out, out_stride),
                  log_sum_exp + (of_batch * s.heads + head) * T,
                  d_qkv + of_batch * T * stride + head * D,
                  stride,
                  {starts ? starts + of_batch * T : nullptr, s.shift(chunk)}};
    };
    RowsAhead ahead;
    if (const int64_t following = (item + 1) / splits; following < kv_heads) {
      const Head head = head_at(following / s.kv_heads, following % s.kv_heads * group, 0);
      ahead.add(head.queries.by_number(), T), ahead.add(head.keys, keys), ahead.add(head.values, keys);
      ahead.add(head.out.by_number(), T), ahead.add(head.d_out.by_number(), T);
    }
    if (splits > 1) scratch.d_keys_values = partial + item * 2 * keys * D;
    std::fill_n(scratch.d_keys_values, 2 * keys * D, 0.0f);
    const Columns key_columns = columns_of(head_at(batch, kv_head * group, 0).keys, 0, keys, scratch.key_columns);
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
      for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
        const Head task = head_at(batch, head, chunk);
        const int64_t begin = s.firsts[static_cast<size_t>(chunk)], end = begin + s.chunk();
        for (int64_t first = begin + split * kQueryBlock; first < end; first += splits * kQueryBlock)
          (starts ? backward_block<true> : backward_block<false>)(task, key_columns, keys, first,
                                                                  std::min(kQueryBlock, end - first), scratch, ahead);
      }
    if (splits == 1) store(kv, scratch.d_keys_values, 1, 0, keys);
  });
  if (splits > 1)
    threads.for_blocks(kv_heads * keys, 64, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        store(row / keys, partial + row / keys * splits * 2 * keys * D, splits, row % keys, row % keys + 1);
    });
}

}  // namespace llm
