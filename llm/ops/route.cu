// route, its backward pass, and expert_load on the GPU. A thread takes a token: its E logits lie side by side in
// memory.
#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/router_rows.h"
#include "llm/ops/typed_cuda.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 128, kLoadThreads = 256;

dim3 blocks_of(int64_t rows) { return dim3(static_cast<unsigned>((rows + kThreads - 1) / kThreads)); }

template <class T>
__global__ void __launch_bounds__(kThreads) route_kernel(const T* __restrict__ logits,  // (rows, E)
                                                         const T* __restrict__ bias,    // (E), or null
                                                         int64_t rows, int E, int K,
                                                         int32_t* experts,  // (rows, K)
                                                         float* weights) {  // (rows, K)
  const int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (simt::in_bounds(r < rows)) choose_experts(logits + r * E, bias, E, K, experts + r * K, weights + r * K);
}

template <class T>
__global__ void __launch_bounds__(kThreads) route_backward_kernel(const float* __restrict__ d_weights,  // (rows, K)
                                                                  const float* __restrict__ weights,    // (rows, K)
                                                                  const int32_t* __restrict__ experts,  // (rows, K)
                                                                  int64_t rows, int E, int K,
                                                                  T* d_logits) {  // (rows, E)
  const int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (simt::in_bounds(r < rows))
    choice_gradient(d_weights + r * K, weights + r * K, experts + r * K, E, K, d_logits + r * E,
                    [](float x) { return simt::stored<T>(x); });
}

// A block counts the choices that fell on one expert.
__global__ void __launch_bounds__(kLoadThreads) expert_load_kernel(const int32_t* __restrict__ experts,  // (choices)
                                                                   int64_t choices, float mean, bool add,
                                                                   float* load) {  // (E)
  auto& count = simt::shared_memory<uint32_t>();
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  uint32_t own = 0;
  for (int64_t i = threadIdx.x; i < choices; i += kLoadThreads) own += experts[i] == static_cast<int32_t>(blockIdx.x);
  atomicAdd(&count, own);
  __syncthreads();
  if (threadIdx.x == 0) {
    const float more = static_cast<float>(count) - mean;
    load[blockIdx.x] = add ? load[blockIdx.x] + more : more;
  }
}

}  // namespace

void route(const KernelCall& call) {
  const Shape& logits = call.in_shape(0);
  with_type(call.in_dtype(0), [&](auto typed) {
    using T = decltype(typed);
    simt::launch(call.cuda->stream(), blocks_of(logits.rows()), dim3(kThreads), 0, route_kernel<T>, call.in<T>(0),
                 call.in<T>(1), logits.rows(), static_cast<int>(logits.last()),
                 static_cast<int>(call.out_shape(0).last()), call.out<int32_t>(0), call.out(1));
  });
}

void route_backward(const KernelCall& call) {
  const Shape& weights = call.in_shape(1);
  with_type(call.out_dtype(0), [&](auto typed) {
    using T = decltype(typed);
    simt::launch(call.cuda->stream(), blocks_of(weights.rows()), dim3(kThreads), 0, route_backward_kernel<T>,
                 call.in(0), call.in(1), call.in_int(2), weights.rows(), static_cast<int>(call.out_shape(0).last()),
                 static_cast<int>(weights.last()), call.out<T>(0));
  });
}

void expert_load(const KernelCall& call) {
  const int64_t E = call.out_shape(0)[0], choices = call.in_shape(0).elements();
  simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(E)), dim3(kLoadThreads), sizeof(uint32_t),
               expert_load_kernel, call.in_int(0), choices, static_cast<float>(choices) / static_cast<float>(E),
               call.accumulates(0), call.out(0));
}

}  // namespace llm::cuda
