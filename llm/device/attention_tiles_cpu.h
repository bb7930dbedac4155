// What the forward and the backward attention kernels on the CPU share: how keys are packed, and how a tile of scores
// is made.
//
// Scores stand transposed, one row a key, one lane a query: so the softmax runs down the rows in whole vectors without
// any sum across lanes, and the probabilities are already in the order in which the microkernel reads its A.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>

#include "llm/base/simd.h"
#include "llm/device/microkernel_cpu.h"
#include "llm/device/pack_cpu.h"

namespace llm::attention {

using microkernel::kColumns;
using simd::IntVec;
using simd::kLanes;
using simd::Vec;

// Rows in a panel of A, be they keys or queries. Panels are cut from runs of kColumns rows, one of which is as long as
// a tile of queries is wide, so that the end of the keys that a tile may see never lies inside a panel.
inline constexpr int kPanelRows = kLanes == 16 ? 8 : kLanes == 8 ? 6 : 4;
inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Of a key in an earlier document, where a maximum is still to be found: finite, so that a difference of two is no NaN. What
// is made of it is multiplied by 0 when the query's own document comes.
inline constexpr float kHidden = -1e30f;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline float* aligned(float* p) { return reinterpret_cast<float*>(round_up(reinterpret_cast<intptr_t>(p), 64)); }

// Rows of one head: row t at data + t * stride, `size` channels.
struct HeadRows {
  const float* data;
  int64_t stride, size;
  const float* row(int64_t t) const { return data + t * stride; }
};

// Calls work(first row, rows) for each panel in [begin, end); begin is a multiple of kColumns.
template <class Work>
inline void for_panels(int64_t begin, int64_t end, Work&& work) {
  for (int64_t block = begin; block < end; block += kColumns) {
    const int64_t block_end = std::min(end, block + kColumns);
    for (int64_t row = block; row < block_end; row += kPanelRows)
      work(row, std::min<int64_t>(kPanelRows, block_end - row));
  }
}

// The height of the panel that starts at `key` of `count` keys; who uses fewer keys of it still steps by that.
inline int64_t panel_height(int64_t key, int64_t count) {
  const int64_t block_end = std::min(count, key / kColumns * kColumns + kColumns);
  return std::min<int64_t>(kPanelRows, block_end - key);
}

// Keys (or values) 0 ... count - 1 as panels of A, channels as k: the panel that starts at a key is at out + key *
// size.
inline void pack_keys_as_rows(HeadRows in, int64_t count, float* out) {
  for_panels(0, count, [&](int64_t key, int64_t keys) {
    microkernel::pack_rows(true, in.row(key), in.stride, keys, in.size, out + key * in.size);
  });
}

// Rows [begin, begin + count) as panels of B with the rows as k: with kColumns = 32, channels [32 p, 32 p + 32) of row
// t are at out + (p * count + t) * 32. Size: count * round_up(size, kColumns).
inline void pack_as_columns(HeadRows in, int64_t begin, int64_t count, float* out, float scale = 1.0f) {
  for (int64_t channel = 0; channel < in.size; channel += kColumns)
    microkernel::pack_columns(false, in.row(begin) + channel, in.stride, std::min<int64_t>(kColumns, in.size - channel),
                              count, out + channel * count, scale);
}

// out (rows, channels) = or += A B, with B from pack_as_columns() and one panel of A, whose strides are the
// microkernel's.
inline void multiply_channels(int64_t rows, int64_t k, const float* a, int64_t a_row, int64_t a_step, const float* b,
                              int64_t b_count, int64_t channels, float* out, int64_t out_stride, bool accumulate) {
  for (int64_t channel = 0; channel < channels; channel += kColumns)
    microkernel::multiply_tile(
        rows, {k, a, a_row, a_step, b + channel * b_count, kColumns, out + channel, out_stride,
               accumulate ? out + channel : nullptr, out_stride, std::min<int64_t>(kColumns, channels - channel)});
}

// tile(key, query) = sum over channels of keys(key, channel) queries(channel, query), for the kColumns queries from
// `first_query` on and the keys [begin, end) of the `count` packed ones, at tile + (key - begin) * stride. Where the
// first half of the queries comes before all keys of a panel, only the second half is computed.
inline void multiply_keys(const float* key_panels, int64_t count, int64_t begin, int64_t end, int64_t channels,
                          const float* queries, int64_t first_query, float* tile, int64_t stride) {
  for_panels(begin, end, [&](int64_t key, int64_t keys) {
    const int64_t skipped = key >= first_query + kLanes ? kLanes : 0;
    microkernel::multiply_tile(
        keys, {channels, key_panels + key * channels, 1, panel_height(key, count), queries + skipped, kColumns,
               tile + (key - begin) * stride + skipped, stride, nullptr, 0, kColumns - skipped});
  });
}

// Of the queries from `first_query` on, one a lane: those that come before the key are replaced.
inline Vec mask(Vec v, int64_t key, int64_t first_query, float replacement) {
  if (key <= first_query) return v;
  IntVec lane;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane >= static_cast<int32_t>(std::min<int64_t>(key - first_query, kLanes)) ? v : simd::broadcast(replacement);
}

// Where the documents of kLanes queries begin, those from `query` on; of those from `end` on, which do not exist, at 0.
inline IntVec starts_of(const int32_t* starts, int64_t query, int64_t end) {
  IntVec v{};
  for (int i = 0; i < kLanes && query + i < end; ++i) v[i] = starts[query + i];
  return v;
}

// Of the queries whose documents begin after the key: those are replaced.
inline Vec mask_earlier_documents(Vec v, int64_t key, IntVec starts, float replacement) {
  return starts <= static_cast<int32_t>(key) ? v : simd::broadcast(replacement);
}

// The first key that queries from `query` on see, as a multiple of kColumns.
inline int64_t first_key_of(const int32_t* starts, int64_t query) {
  return starts ? starts[query] / kColumns * kColumns : 0;
}

}  // namespace llm::attention
