// Loops over rows of floats in vectors, with the ragged end handled by the same code:
//   for_vectors(n, [&](int64_t i, auto lanes) { lanes.store(y + i, lanes.load(x + i) * scale); });
#pragma once
#include "llm/base/simd.h"

namespace llm {

struct AllLanes {
  simd::Vec load(const float* p) const { return simd::load(p); }
  void store(float* p, simd::Vec v) const { simd::store(p, v); }
  // Makes the lanes beyond the end zero: for sums of a function that is not zero at zero.
  simd::Vec keep(simd::Vec v) const { return v; }
};

struct FirstLanes {
  int64_t count;
  simd::Vec load(const float* p) const { return simd::load_part(p, count); }
  void store(float* p, simd::Vec v) const { simd::store_part(p, v, count); }
  simd::Vec keep(simd::Vec v) const {
    simd::Vec kept{};
    for (int i = 0; i < simd::kLanes; ++i) kept[i] = i < count ? v[i] : 0.0f;
    return kept;
  }
};

template <class Body>
inline void for_vectors(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + simd::kLanes <= n; i += simd::kLanes) body(i, AllLanes{});
  if (i < n) body(i, FirstLanes{n - i});
}

// The number of rows of a block of about 32 KiB, for ThreadTeam::for_blocks: handing a block out then costs nothing
// beside its work.
inline int64_t row_grain(int64_t columns) { return columns >= 8192 ? 1 : 8192 / (columns > 0 ? columns : 1); }

}  // namespace llm
