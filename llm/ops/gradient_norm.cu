// gradient_norm: all gradients -> (1), the Euclidean norm of all of them together. A block of threads adds up the
// squares of 16384 floats of one tensor and leaves a double; then one block adds these doubles in a fixed order. Each
// gradient is read once. One launch takes up to kTensors tensors.
#include <cmath>

#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/cuda_workspaces.h"
#include "llm/ops/multi_tensor_cuda.h"
#include "llm/ops/reduce_cuda.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256, kTensors = 196, kLastThreads = 1024;

struct Tensors {
  const float* gradient[kTensors];
  int64_t elements[kTensors];
  int first_block[kTensors];
  int count;
};
static_assert(sizeof(Tensors) <= 4000, "a kernel's parameters are 4 KiB together");

struct Shared {
  double sums[32];
};

__global__ void __launch_bounds__(kThreads)
    sum_squares_kernel(const __grid_constant__ Tensors tensors, double* __restrict__ sums) {  // (blocks)
  auto& s = simt::shared_memory<Shared>();
  using Pack = simt::Pack<float>;
  const int block = static_cast<int>(blockIdx.x);
  const int tensor = tensor_of_block(tensors.first_block, tensors.count, block);
  const int64_t begin = (block - tensors.first_block[tensor]) * kGradientNormBlock;
  const float* x = tensors.gradient[tensor] + begin;
  const auto n = static_cast<int>(min(kGradientNormBlock, tensors.elements[tensor] - begin));
  const int packed = reinterpret_cast<uintptr_t>(x) % 16 == 0 ? n / 4 * 4 : 0;  // the rest one by one
  float sum = 0;
#pragma unroll 8
  for (int i = 4 * static_cast<int>(threadIdx.x); i < packed; i += 4 * kThreads) {
    const Pack v = *reinterpret_cast<const Pack*>(x + i);
#pragma unroll
    for (int k = 0; k < 4; ++k) sum += v.values[k] * v.values[k];
  }
  for (int i = packed + static_cast<int>(threadIdx.x); i < n; i += kThreads) sum += x[i] * x[i];
  const double total = block_sum(static_cast<double>(sum), s.sums);
  if (threadIdx.x == 0) sums[block] = total;
}

__global__ void __launch_bounds__(kLastThreads) norm_kernel(const double* __restrict__ sums,  // (blocks)
                                                            int blocks, float* norm) {        // (1)
  auto& s = simt::shared_memory<Shared>();
  double sum = 0;
#pragma unroll 4
  for (int b = static_cast<int>(threadIdx.x); b < blocks; b += kLastThreads) sum += sums[b];
  sum = block_sum(sum, s.sums);
  if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(sum));
}

}  // namespace

void gradient_norm(const KernelCall& call) {
  auto* sums = call.workspace<double>();
  int done = 0;  // blocks
  Tensors tensors;
  tensors.count = 0;
  int blocks = 0;
  const auto flush = [&] {
    if (blocks > 0)
      simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(blocks)), dim3(kThreads), sizeof(Shared),
                   sum_squares_kernel, tensors, sums + done);
    done += blocks;
    tensors.count = blocks = 0;
  };
  for (size_t i = 0; i < call.node.inputs.size(); ++i) {
    const int64_t elements = call.in_shape(i).elements();
    tensors.gradient[tensors.count] = call.in(i);
    tensors.elements[tensors.count] = elements;
    tensors.first_block[tensors.count++] = blocks;
    blocks += static_cast<int>(gradient_norm_blocks_cuda(elements));
    if (tensors.count == kTensors) flush();
  }
  flush();
  simt::launch(call.cuda->stream(), dim3(1), dim3(kLastThreads), sizeof(Shared), norm_kernel, sums, done, call.out(0));
}

}  // namespace llm::cuda
