// Softmax and cross-entropy of one row of logits on the CPU, for cross_entropy and head_loss.
#pragma once
#include <cmath>
#include <limits>

#include "llm/ops/rows.h"

namespace llm {

// cap tanh(x / cap), which keeps logits within (-cap, cap) (Gemma 2); with a cap of 0 x stays as it is.
struct SoftCap {
  float cap;

  explicit SoftCap(double value) : cap(static_cast<float>(value)) {}
  explicit operator bool() const { return cap > 0; }
  simd::Vec operator()(simd::Vec x) const { return cap > 0 ? simd::tanh(x * (1 / cap)) * cap : x; }
  float operator()(float x) const { return (*this)(simd::broadcast(x))[0]; }
  // The derivative of the cap at x, from the capped value y.
  simd::Vec derivative(simd::Vec y) const {
    const simd::Vec t = y * (1 / cap);
    return 1.0f - t * t;
  }
  float derivative(float y) const { return derivative(simd::broadcast(y))[0]; }
};

// max + log(sum(exp(logit - max))) of the capped logits (n). If not null, `exponentials` (n; may be the row itself)
// becomes exp(logit - max), and `sum_out` the sum of these.
inline float log_sum_exp(const float* logits, int64_t n, float* exponentials, float* sum_out,
                         SoftCap soft_cap = SoftCap(0)) {
  simd::Vec top = simd::broadcast(-std::numeric_limits<float>::infinity());
  float max = -std::numeric_limits<float>::infinity();
  int64_t i = 0;
  for (; i + simd::kLanes <= n; i += simd::kLanes) top = simd::max(top, simd::load(logits + i));
  for (; i < n; ++i) max = logits[i] > max ? logits[i] : max;
  const float lanes_max = simd::reduce_max(top);
  max = soft_cap(lanes_max > max ? lanes_max : max);
  simd::Vec sum{};
  for_vectors(n, [&](int64_t c, auto lanes) {
    const simd::Vec e = simd::exp(soft_cap(lanes.load(logits + c)) - max);
    if (exponentials) lanes.store(exponentials + c, e);
    sum += lanes.keep(e);
  });
  const float total = simd::reduce_add(sum);
  if (sum_out) *sum_out = total;
  return max + std::log(total);
}

}  // namespace llm
