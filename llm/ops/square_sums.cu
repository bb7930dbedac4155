// square_sums and gradient_norm (square_sums.cpp). A block of threads adds up the squares of 16384 floats of one tensor; then one
// block adds these sums in a fixed order, in double. Each gradient is read once. One launch takes up to kTensors tensors.
#include <cmath>

#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/multi_tensor_cuda.h"
#include "llm/ops/reduce_cuda.h"
#include "llm/ops/square_sums.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256, kTensors = 160, kLastThreads = 1024;

struct Tensors {
  const float* gradient[kTensors];
  int64_t elements[kTensors];
  int first_block[kTensors], first_slot[kTensors];
  int count;
};
static_assert(sizeof(Tensors) <= 4000, "a kernel's parameters are 4 KiB together");

struct Shared {
  double sums[32];
};

__global__ void __launch_bounds__(kThreads)
    sum_squares_kernel(const __grid_constant__ Tensors tensors, float* __restrict__ sums) {  // (slots)
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
  if (threadIdx.x == 0)
    sums[tensors.first_slot[tensor] + block - tensors.first_block[tensor]] = static_cast<float>(total);
}

// A slot has a sum other than 0 in one row alone.
__global__ void __launch_bounds__(kLastThreads) norm_kernel(const float* __restrict__ sums,       // (ranks, slots)
                                                            int ranks, int slots, float* norm) {  // (1)
  auto& s = simt::shared_memory<Shared>();
  double sum = 0;
  for (int slot = static_cast<int>(threadIdx.x); slot < slots; slot += kLastThreads)
#pragma unroll 4
    for (int r = 0; r < ranks; ++r) sum += static_cast<double>(sums[int64_t{r} * slots + slot]);
  sum = block_sum(sum, s.sums);
  if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(sum));
}

}  // namespace

void square_sums(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const auto first_slots = a.list("first_slots");
  const int64_t slots = a.integer("slots");
  float* const row = call.out(0) + a.integer("rank") * slots;
  if (a.integer("ranks") > 1 &&
      cudaMemsetAsync(row, 0, static_cast<size_t>(slots) * sizeof(float), call.cuda->stream()) != cudaSuccess)
    fail("CUDA: cannot clear the sums of squares");
  Tensors tensors;
  tensors.count = 0;
  int blocks = 0;
  const auto flush = [&] {
    if (blocks > 0)
      simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(blocks)), dim3(kThreads), sizeof(Shared),
                   sum_squares_kernel, tensors, row);
    tensors.count = blocks = 0;
  };
  for (size_t i = 0; i < call.node.inputs.size(); ++i) {
    if (!call.has_input(i)) continue;
    const int64_t elements = call.in_shape(i).elements();
    tensors.gradient[tensors.count] = call.in(i);
    tensors.elements[tensors.count] = elements;
    tensors.first_slot[tensors.count] = static_cast<int>(first_slots[i]);
    tensors.first_block[tensors.count++] = blocks;
    blocks += static_cast<int>(square_sum_blocks(elements));
    if (tensors.count == kTensors) flush();
  }
  flush();
}

void gradient_norm(const KernelCall& call) {
  simt::launch(call.cuda->stream(), dim3(1), dim3(kLastThreads), sizeof(Shared), norm_kernel, call.in(0),
               static_cast<int>(call.in_shape(0)[0]), static_cast<int>(call.in_shape(0)[1]), call.out(0));
}

}  // namespace llm::cuda
