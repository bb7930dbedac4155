// Softmax and cross-entropy of one row of logits by one block, for cross_entropy and the fused head. Rows are read 16 bytes a
// thread where they start at multiples of 16 bytes, one value a thread elsewhere.
#pragma once
#include <algorithm>

#include "llm/device/simt.h"

namespace llm::cuda {

inline constexpr int kSoftmaxThreads = 512, kSoftmaxWarps = kSoftmaxThreads / 32;  // of a block, at the most
inline constexpr float kLog2E = 1.4426950408889634f;

// Threads for a row of so many packs: whole warps.
inline dim3 softmax_threads(int64_t packs) {
  return dim3(static_cast<unsigned>(std::clamp<int64_t>((packs + 31) / 32 * 32, 32, kSoftmaxThreads)));
}

// e^x to about 1e-6 of its value, where x is not far from 0 or the value does not matter.
__device__ inline float exp_fast(float x) { return simt::exp2_fast(x * kLog2E); }

struct SoftmaxShared {
  float most[kSoftmaxWarps], sum[kSoftmaxWarps];
};

// The largest value seen, and the sum of 2^((value - largest) log2 e): the two halves of a softmax in one pass (Milakov and
// Gimelshein 2018).
struct RunningSum {
  float most = -INFINITY, sum = 0;

  __device__ void join(float other_most, float other_sum) {
    const float larger = fmaxf(most, other_most);
    if (larger == -INFINITY) {  // nothing to rescale; a NaN passes through
      sum += other_sum;
      return;
    }
    sum = sum * exp_fast(most - larger) + other_sum * exp_fast(other_most - larger);
    most = larger;
  }
};

// max + log(sum(exp(value - max))) over all threads of the block, in all of them. A butterfly, then the warps in order: the
// same bits every time.
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

// A pack's values into the sum: the largest first, so that one rescaling serves them all.
template <class T, int N>
__device__ inline void add_pack(RunningSum& running, const simt::Pack<T, N>& pack) {
  float most = running.most;
#pragma unroll
  for (int i = 0; i < N; ++i) most = fmaxf(most, pack.get(i));
  if (most == -INFINITY) {
    for (int i = 0; i < N; ++i) running.sum += pack.get(i) == -INFINITY ? 0 : pack.get(i);  // NaNs
    return;
  }
  float sum = running.sum * exp_fast(running.most - most);
#pragma unroll
  for (int i = 0; i < N; ++i) sum += exp_fast(pack.get(i) - most);
  running.sum = sum, running.most = most;
}

// d (softmax - one_hot(target)) of a pack whose first value has index `first`, in its place.
template <class T, int N>
__device__ inline void gradient_of_pack(simt::Pack<T, N>& pack, float log_sum_exp, float d, int64_t first,
                                        int64_t target) {
  float g[N];
#pragma unroll
  for (int i = 0; i < N; ++i) g[i] = exp_fast(pack.get(i) - log_sum_exp) * d;
  if (target >= first && target < first + N) {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (first + i == target) g[i] -= d;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) pack.set(i, g[i]);
}

}  // namespace llm::cuda
