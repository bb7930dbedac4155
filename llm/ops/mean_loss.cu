// mean_loss: losses (B, T), weights (B, T) -> loss (1), the sum of losses times weights, in double. One block is
// enough: the inputs are some ten thousand floats, read once.
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/reduce_cuda.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 1024;

struct Shared {
  double sums[32];
};

__global__ void __launch_bounds__(kThreads) mean_loss_kernel(const float* __restrict__ losses,   // (B T)
                                                             const float* __restrict__ weights,  // (B T)
                                                             int64_t n, float* loss,             // (1)
                                                             bool add) {
  auto& s = simt::shared_memory<Shared>();
  double sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < n; i += kThreads)
    sum += static_cast<double>(losses[i]) * static_cast<double>(weights[i]);
  sum = block_sum(sum, s.sums);
  if (threadIdx.x == 0) *loss = static_cast<float>(add ? *loss + sum : sum);
}

}  // namespace

void mean_loss(const KernelCall& call) {
  simt::launch(call.cuda->stream(), dim3(1), dim3(kThreads), sizeof(Shared), mean_loss_kernel, call.in(0), call.in(1),
               call.in_shape(0).elements(), call.out(0), call.accumulates(0));
}

}  // namespace llm::cuda
