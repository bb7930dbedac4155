// Sums over the threads of a warp or a block, in one fixed order.
#pragma once
#include "llm/device/simt.h"

namespace llm::cuda {

// The sum over each group of `lanes` (a power of two) neighbouring lanes, in all of them. In a butterfly every lane
// adds the same pairs, so all lanes get the same bits.
template <class T>
__device__ inline T warp_sum(T x, int lanes = 32) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(simt::kWholeWarp, x, offset);
  return x;
}

// The sum over a whole block, in all of its threads. `sums` (32) is shared memory that nothing else uses.
template <class T>
__device__ inline T block_sum(T x, T* sums) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) x += sums[warp];
  return x;
}

}  // namespace llm::cuda
