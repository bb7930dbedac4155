// What the forward and the backward attention kernels on the CPU share: packed operands, tiles of scores, and masks.
//
// Tiles of scores are stored transposed, with a row for each key and a lane for each query. So the softmax runs down
// the rows in whole vectors, without sums across lanes, and the probabilities already have the order in which the
// microkernel reads its A.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>

#include "llm/base/rounding.h"
#include "llm/base/simd.h"
#include "llm/device/microkernel_cpu.h"
#include "llm/device/pack_cpu.h"

namespace llm::attention {

using microkernel::kColumns;
using simd::IntVec;
using simd::kLanes;
using simd::Vec;

inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// The score of a key in an earlier document than the query's, before the maximum is known. It is finite, so that a
// difference of two is not NaN. Sums over such keys alone are later multiplied by 0: when a key of the query's own
// document raises the maximum, or at the end.
inline constexpr float kHidden = -1e30f;

// The rows of one head, which have `size` channels: that of position t is at data + (t - shift) * stride.
struct HeadRows {
  const float* data;
  int64_t stride, size;
  int64_t shift = 0;
  const float* row(int64_t t) const { return data + (t - shift) * stride; }
  HeadRows by_number() const { return {data, stride, size}; }  // row t has number t
};

// The rows that a thread is likely to need next, after the current head: pieces of a few cache lines that lie far
// apart, so that the hardware does not prefetch them. Each tile of scores prefetches a part of them.
class RowsAhead {
 public:
  // Adds rows [0, count) of one more matrix.
  void add(HeadRows rows, int64_t count) {
    if (matrices_ < kMost) rows_[matrices_] = rows, counts_[matrices_++] = count;
  }
  // Makes the tile prefetch the next part.
  void hand_out(microkernel::Tile& t) {
    if (at_ == matrices_) return;
    const HeadRows& m = rows_[at_];
    t.fetch = m.row(row_) + channel_;
    t.fetch_step = m.stride;
    t.fetch_block = 16 * m.stride;
    row_ += t.k;
    if (row_ < counts_[at_]) return;
    row_ = 0, channel_ += 16;
    if (channel_ >= m.size) channel_ = 0, ++at_;
  }

 private:
  static constexpr int kMost = 8;
  HeadRows rows_[kMost];
  int64_t counts_[kMost];
  int matrices_ = 0, at_ = 0;
  int64_t row_ = 0, channel_ = 0;
};

// Calls work(first row, number of rows) for panels of nearly equal height in [begin, end). The panels are cut from runs
// of kColumns rows counted from `begin`, a multiple of kColumns.
template <class Work>
inline void for_panels(int64_t begin, int64_t end, Work&& work) {
  for (int64_t block = begin; block < end; block += kColumns) {
    const microkernel::RowPanels panels(std::min<int64_t>(kColumns, end - block));
    for (int64_t i = 0; i < panels.count; ++i) work(block + panels.begin(i), panels.begin(i + 1) - panels.begin(i));
  }
}

// The rows of a head as the microkernel's B, with the rows as k: channels [p kColumns, (p + 1) kColumns) of row t are
// at data + p * panel_stride + t * row_stride.
struct Columns {
  const float* data;
  int64_t panel_stride, row_stride;
  Columns from_row(int64_t t) const { return {data + t * row_stride, panel_stride, row_stride}; }
};

// How many floats columns_of() needs to pack `count` rows. None where the rows can be used in place: where the last
// vector of a row is full, and the distance of the rows is not a multiple of 4 KiB, so that they do not share sets of
// the cache.
inline int64_t packed_floats(int64_t count, int64_t size, int64_t stride) {
  return size % kLanes == 0 && stride % 1024 != 0 ? 0 : count * round_up(size, kColumns);
}

// Rows [begin, begin + count) of a head as B: in place, or packed into `scratch` (packed_floats()).
inline Columns columns_of(HeadRows in, int64_t begin, int64_t count, float* scratch) {
  if (packed_floats(count, in.size, in.stride) == 0) return {in.row(begin), kColumns, in.stride};
  for (int64_t channel = 0; channel < in.size; channel += kColumns)
    microkernel::pack_columns(false, in.row(begin) + channel, in.stride, std::min<int64_t>(kColumns, in.size - channel),
                              count, scratch + channel * count);
  return {scratch, count * kColumns, kColumns};
}

// out (rows, channels) = A B, or with `accumulate` out += A B: A (rows, k) is one panel of rows, element (i, j) at
// a[i * a_row + j * a_step]; B is (k, channels).
inline void multiply_channels(int64_t rows, int64_t k, const float* a, int64_t a_row, int64_t a_step, Columns b,
                              int64_t channels, float* out, int64_t out_stride, bool accumulate) {
  for (int64_t channel = 0; channel < channels; channel += kColumns)
    microkernel::multiply_tile(rows, {k, a, a_row, a_step, b.data + channel / kColumns * b.panel_stride, b.row_stride,
                                      out + channel, out_stride, accumulate ? out + channel : nullptr, out_stride,
                                      std::min<int64_t>(kColumns, channels - channel)});
}

// tile(key, query) = sum over channels of keys(key, channel) queries(channel, query), for the kColumns queries from
// `first_query` on and the keys [begin, end); the row of a key is at tile + (key - begin) * stride. `queries` (D,
// kColumns) is packed. Where the first half of the queries comes before all keys of a panel, only the second half is
// computed.
inline void multiply_keys(HeadRows keys, int64_t begin, int64_t end, const float* queries, int64_t first_query,
                          float* tile, int64_t stride, RowsAhead& ahead) {
  for_panels(begin, end, [&](int64_t key, int64_t count) {
    const int64_t skipped = key >= first_query + kLanes ? kLanes : 0;
    microkernel::Tile t = {keys.size,
                           keys.row(key),
                           keys.stride,
                           1,
                           queries + skipped,
                           kColumns,
                           tile + (key - begin) * stride + skipped,
                           stride,
                           nullptr,
                           0,
                           kColumns - skipped,
                           nullptr,
                           true};
    ahead.hand_out(t);
    microkernel::multiply_tile(count, t);
  });
}

// Lane i of v belongs to query first_query + i. Replaces the lanes of queries that come before the key.
inline Vec mask(Vec v, int64_t key, int64_t first_query, float replacement) {
  if (key <= first_query) return v;
  IntVec lane;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane >= static_cast<int32_t>(std::min<int64_t>(key - first_query, kLanes)) ? v : simd::broadcast(replacement);
}

// The first key that each query of a chunk sees: that of the query at position t is starts[t - shift].
struct QueryStarts {
  const int32_t* starts = nullptr;  // (T), or null: all queries see key 0
  int64_t shift = 0;

  explicit operator bool() const { return starts != nullptr; }
  // Of the kLanes queries from `query` on; 0 for queries from `end` on, which do not exist.
  IntVec lanes(int64_t query, int64_t end) const {
    IntVec v{};
    for (int i = 0; i < kLanes && query + i < end; ++i) v[i] = starts[query - shift + i];
    return v;
  }
  // The first key that queries from `query` on see, rounded down to a multiple of kColumns.
  int64_t first_key(int64_t query) const { return starts ? starts[query - shift] / kColumns * kColumns : 0; }
};

// Replaces the lanes of queries whose documents begin after the key.
inline Vec mask_earlier_documents(Vec v, int64_t key, IntVec starts, float replacement) {
  return starts <= static_cast<int32_t>(key) ? v : simd::broadcast(replacement);
}

}  // namespace llm::attention
