// Softmax and cross-entropy of one row of logits by one block, for cross_entropy and head_loss. A thread reads 16 bytes
// at a time where rows start at multiples of 16 bytes, and one value at a time elsewhere.
#pragma once
#include <algorithm>

#include "llm/device/simt.h"
#include "llm/graph/graph.h"

namespace llm::cuda {

inline constexpr int kSoftmaxThreads = 512;  // the most of a block where several blocks share a multiprocessor
inline constexpr int kSoftmaxMostThreads = 1024, kSoftmaxWarps = kSoftmaxMostThreads / 32;
inline constexpr float kLog2E = 1.4426950408889634f;

// The threads of a block for a row of so many packs: whole warps, and at most `most`.
inline dim3 softmax_threads(int64_t packs, int64_t most = kSoftmaxThreads) {
  return dim3(static_cast<unsigned>(std::clamp<int64_t>((packs + 31) / 32 * 32, 32, most)));
}

// e^x to about 1e-6 of its value for x near 0. For x far below 0 the relative error grows, but there the value is tiny.
__device__ inline float exp_fast(float x) { return simt::exp2_fast(x * kLog2E); }

// The terms of the loss (cross_entropy.cpp). Only with kCapped do kernels contain the soft-cap's tanh.
template <bool kCapped>
struct LossTerms {
  float cap, inverse_cap, z_loss;

  explicit LossTerms(const Attributes& a)
      : cap(static_cast<float>(a.number("softcap", 0))),
        inverse_cap(kCapped ? 1 / cap : 0),
        z_loss(static_cast<float>(a.number("z_loss", 0))) {}

  __device__ float logit(float x) const { return kCapped ? cap * tanhf(x * inverse_cap) : x; }
  __device__ float derivative(float logit) const {
    return kCapped ? 1 - (logit * inverse_cap) * (logit * inverse_cap) : 1;
  }
  __device__ float loss(float log_sum_exp, float target) const {
    return log_sum_exp - logit(target) + z_loss * log_sum_exp * log_sum_exp;
  }
  __device__ float softmax_weight(float log_sum_exp) const { return 1 + 2 * z_loss * log_sum_exp; }
};

// Calls body(LossTerms) for a node's attributes.
template <class Body>
void with_loss_terms(const Attributes& a, Body&& body) {
  if (a.number("softcap", 0) > 0) return body(LossTerms<true>(a));
  body(LossTerms<false>(a));
}

struct SoftmaxShared {
  float most[kSoftmaxWarps], sum[kSoftmaxWarps];
};

// The largest value seen, and the sum of exp(value - largest), in one pass (Milakov and Gimelshein 2018).
struct RunningSum {
  float most = -INFINITY, sum = 0;

  __device__ void join(float other_most, float other_sum) {
    const float larger = fmaxf(most, other_most);
    if (larger == -INFINITY) {  // both sums are 0, or NaN, which is kept
      sum += other_sum;
      return;
    }
    sum = sum * exp_fast(most - larger) + other_sum * exp_fast(other_most - larger);
    most = larger;
  }
};

// max + log(sum(exp(value - max))) over all threads of the block, in all of them. The lanes are combined by a
// butterfly, the warps in order, so the bits are the same every time.
__device__ inline float block_log_sum_exp(RunningSum mine, SoftmaxShared& s) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const float most = __shfl_xor_sync(simt::kWholeWarp, mine.most, offset);
    const float sum = __shfl_xor_sync(simt::kWholeWarp, mine.sum, offset);
    mine.join(most, sum);
  }
  if (threadIdx.x % 32 == 0) s.most[threadIdx.x / 32] = mine.most, s.sum[threadIdx.x / 32] = mine.sum;
  __syncthreads();
  RunningSum all;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) all.join(s.most[w], s.sum[w]);
  return all.most + logf(all.sum);
}

// Adds the logits of a pack to the sum, which is rescaled once, to the largest of them.
template <class T, int N, class Terms>
__device__ inline void add_pack(RunningSum& running, const simt::Pack<T, N>& pack, const Terms& terms) {
  float logits[N], most = running.most;
#pragma unroll
  for (int i = 0; i < N; ++i) most = fmaxf(most, logits[i] = terms.logit(pack.get(i)));
  if (most == -INFINITY) {
    for (int i = 0; i < N; ++i) running.sum += logits[i] == -INFINITY ? 0 : logits[i];  // adds NaNs, if there are any
    return;
  }
  float sum = running.sum * exp_fast(running.most - most);
#pragma unroll
  for (int i = 0; i < N; ++i) sum += exp_fast(logits[i] - most);
  running.sum = sum, running.most = most;
}

// Replaces a pack of logits, of which the first has index `first` in the row, by their gradient; `d` is the gradient of
// the row's loss.
template <class T, int N, class Terms>
__device__ inline void gradient_of_pack(simt::Pack<T, N>& pack, float log_sum_exp, float d, int64_t first,
                                        int64_t target, const Terms& terms) {
  float g[N], slope[N];
  const float of_softmax = d * terms.softmax_weight(log_sum_exp);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float logit = terms.logit(pack.get(i));
    g[i] = exp_fast(logit - log_sum_exp) * of_softmax;
    slope[i] = terms.derivative(logit);
  }
  if (target >= first && target < first + N) {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (first + i == target) g[i] -= d;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) pack.set(i, g[i] * slope[i]);
}

}  // namespace llm::cuda
