// The largest absolute value of what a kernel writes, found while the values are in registers. It gives the scale of
// their 8-bit copy.
#pragma once
#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/graph/op.h"

namespace llm::cuda {

struct LargestShared {
  float most[32];
};

// Raises `largest` (1), the bits of a float, to the maximum over the block of `most`, the largest absolute value that
// this thread has written. All threads of the block call this at their end. Nothing is done where `largest` is null.
// Floats that are not negative are ordered like their bits, and a maximum does not depend on the order of its operands,
// so the result of the atomic is the same in every run.
__device__ inline void note_largest(float most, uint32_t* largest, LargestShared& s) {
  if (!largest) return;
  for (int offset = 16; offset > 0; offset /= 2) most = fmaxf(most, __shfl_xor_sync(simt::kWholeWarp, most, offset));
  if (threadIdx.x % 32 == 0) s.most[threadIdx.x / 32] = most;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) most = fmaxf(most, s.most[warp]);
  atomicMax(largest, bits_of(most));
}

// The same, using the first bytes of `s`, shared memory that the block no longer needs.
template <class Shared>
__device__ inline void note_largest_over(float most, uint32_t* largest, Shared& s) {
  if (!largest) return;
  __syncthreads();
  void* memory = &s;
  note_largest(most, largest, *static_cast<LargestShared*>(memory));
}

// Where the kernel of this call is to put the largest value, after setting it to 0 on the stream; null where no node
// needs the value.
inline uint32_t* largest_of(const KernelCall& call) {
  auto* largest = call.out<uint32_t>(static_cast<size_t>(call.node.op->slots.largest));
  if (largest && cudaMemsetAsync(largest, 0, sizeof *largest, call.cuda->stream()) != cudaSuccess)
    fail("CUDA: clearing ", sizeof *largest, " bytes: ", cudaGetErrorString(cudaGetLastError()));
  return largest;
}

}  // namespace llm::cuda
