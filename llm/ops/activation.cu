// gelu and relu2, element by element (elementwise_cuda.h): h -> a. Their backward ops: (da, h) -> dh. Each kernel reads
// its inputs and writes its output once.
#include "llm/device/cuda.h"
#include "llm/ops/activation_cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/elementwise_cuda.h"

namespace llm::cuda {
void gelu(const KernelCall& call) { elementwise_op<1>(call, Activate<Gelu>{}); }
void gelu_backward(const KernelCall& call) { elementwise_op<2>(call, MultiplyByDerivative<Gelu>{}); }
void relu2(const KernelCall& call) { elementwise_op<1>(call, Activate<Relu2>{}); }
void relu2_backward(const KernelCall& call) { elementwise_op<2>(call, MultiplyByDerivative<Relu2>{}); }

}  // namespace llm::cuda
