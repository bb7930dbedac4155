// scale, element by element (elementwise_cuda.h). The kernel reads its input and writes its output once.
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/elementwise_cuda.h"

namespace llm::cuda {
namespace {

struct Scale {
  float factor;
  __device__ float operator()(float x) const { return factor * x; }
};

}  // namespace

void scale(const KernelCall& call) {
  elementwise_op<1>(call, Scale{static_cast<float>(call.node.attributes.number("factor"))});
}

}  // namespace llm::cuda
