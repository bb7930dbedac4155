// Softmax and cross-entropy of one row of logits, for cross_entropy and the fused head.
#pragma once
#include <cmath>
#include <limits>

#include "llm/ops/rows.h"

namespace llm {

// A target below zero is not counted: no loss, no gradient.
inline constexpr int32_t kIgnoredTarget = -1;

// max + log(sum(exp(logit - max))). With `exponentials` (may be the row itself) also stores exp(logit - max) there and
// gives their sum.
inline float log_sum_exp(const float* logits, int64_t n, float* exponentials, float* sum_out) {
  simd::Vec top = simd::broadcast(-std::numeric_limits<float>::infinity());
  float max = -std::numeric_limits<float>::infinity();
  int64_t i = 0;
  for (; i + simd::kLanes <= n; i += simd::kLanes) top = simd::max(top, simd::load(logits + i));
  for (; i < n; ++i) max = logits[i] > max ? logits[i] : max;
  const float lanes_max = simd::reduce_max(top);
  max = lanes_max > max ? lanes_max : max;
  simd::Vec sum{};
  for_vectors(n, [&](int64_t c, auto lanes) {
    const simd::Vec e = simd::exp(lanes.load(logits + c) - max);
    if (exponentials) lanes.store(exponentials + c, e);
    sum += lanes.keep(e);
  });
  const float total = simd::reduce_add(sum);
  if (sum_out) *sum_out = total;
  return max + std::log(total);
}

}  // namespace llm
