// One launch for many tensors: their addresses and sizes travel as a kernel's parameters (at most 4 KiB), and each tensor
// has blocks of threads of its own, of a fixed number of elements.
#pragma once
#include <cstdint>

#include "llm/device/simt.h"

namespace llm::cuda {

// Which tensor a block belongs to. first_block[i] is tensor i's first one; `count` tensors are there.
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
