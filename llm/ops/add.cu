// add: c = a + b, element by element (elementwise_cuda.h). The kernel reads both inputs and writes the output once.
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/elementwise_cuda.h"

namespace llm::cuda {

void add(const KernelCall& call) { elementwise_op<2>(call, Add{}); }

}  // namespace llm::cuda
