// One launch for many tensors: their addresses and sizes are passed as parameters of the kernel (at most 4 KiB), and
// each tensor has its own blocks of threads, each for a fixed number of elements.
#pragma once
#include <cstdint>

#include "llm/device/simt.h"

namespace llm::cuda {

// Which of `count` tensors a block belongs to; first_block[i] is the first block of tensor i.
__device__ inline int tensor_of_block(const int* first_block, int count, int block) {
  int low = 0, high = count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (first_block[middle] <= block)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

}  // namespace llm::cuda
