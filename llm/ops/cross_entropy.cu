// cross_entropy and its backward pass on the GPU: a block takes a row. Bytes: each of the two kernels reads the logits
// once; the backward kernel writes their gradient once.
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/softmax_cuda.h"

namespace llm::cuda {
namespace {

template <class T, int N, class Terms>
__global__ void __launch_bounds__(kSoftmaxThreads)
    loss_kernel(const T* __restrict__ logits,         // (rows, columns)
                const int32_t* __restrict__ targets,  // (rows)
                float* losses, float* log_sum_exp, int64_t columns, Terms terms) {
  auto& s = simt::shared_memory<SoftmaxShared>();
  const T* row = logits + int64_t{blockIdx.x} * columns;
  RunningSum running;
  for (int64_t c = int64_t{threadIdx.x} * N; c < columns; c += int64_t{blockDim.x} * N)
    add_pack(running, *reinterpret_cast<const simt::Pack<T, N>*>(row + c), terms);
  const float lse = block_log_sum_exp(running, s);
  if (threadIdx.x > 0) return;
  const int32_t target = targets[blockIdx.x];
  log_sum_exp[blockIdx.x] = lse;
  losses[blockIdx.x] = target < 0 ? 0.0f : terms.loss(lse, to_float(row[target]));
}

template <class T, int N, class Terms>
__global__ void __launch_bounds__(kSoftmaxThreads) gradient_kernel(const float* __restrict__ d_losses,  // (rows)
                                                                   const T* logits,  // (rows, columns)
                                                                   const int32_t* __restrict__ targets,    // (rows)
                                                                   const float* __restrict__ log_sum_exp,  // (rows)
                                                                   T* d_logits,  // (rows, columns), may be the logits
                                                                   int64_t columns, Terms terms) {
  const int64_t offset = int64_t{blockIdx.x} * columns;
  const int32_t target = targets[blockIdx.x];
  const float d = target < 0 ? 0.0f : d_losses[blockIdx.x], lse = log_sum_exp[blockIdx.x];
  for (int64_t c = int64_t{threadIdx.x} * N; c < columns; c += int64_t{blockDim.x} * N) {
    auto pack = *reinterpret_cast<const simt::Pack<T, N>*>(logits + offset + c);
    gradient_of_pack(pack, lse, d, c, target, terms);
    *reinterpret_cast<simt::Pack<T, N>*>(d_logits + offset + c) = pack;
  }
}

// Calls body(width of a pack as an std::integral_constant, LossTerms).
template <class T, class Body>
void with_packs(bool packs, const Attributes& attributes, Body&& body) {
  with_loss_terms(attributes, [&](const auto& terms) {
    if (packs)
      body(std::integral_constant<int, simt::kPack<T>>(), terms);
    else
      body(std::integral_constant<int, 1>(), terms);
  });
}

template <class T>
void loss(const KernelCall& call) {
  const int64_t columns = call.in_shape(0).last();
  const dim3 rows(static_cast<unsigned>(call.in_shape(0).rows()));
  with_packs<T>(simt::packs(call.in<T>(0), columns), call.node.attributes, [&](auto n, auto terms) {
    simt::launch(call.cuda->stream(), rows, softmax_threads(columns / n), sizeof(SoftmaxShared),
                 loss_kernel<T, decltype(n)::value, decltype(terms)>, call.in<T>(0), call.in_int(1), call.out(0),
                 call.out(1), columns, terms);
  });
}

template <class T>
void gradient(const KernelCall& call) {
  const int64_t columns = call.in_shape(1).last();
  const dim3 rows(static_cast<unsigned>(call.in_shape(1).rows()));
  const bool packs = simt::packs(call.in<T>(1), columns) && simt::packs(call.out<T>(0), columns);
  with_packs<T>(packs, call.node.attributes, [&](auto n, auto terms) {
    simt::launch(call.cuda->stream(), rows, softmax_threads(columns / n), 0,
                 gradient_kernel<T, decltype(n)::value, decltype(terms)>, call.in(0), call.in<T>(1), call.in_int(2),
                 call.in(3), call.out<T>(0), columns, terms);
  });
}

}  // namespace

void cross_entropy(const KernelCall& call) {
  if (call.in_dtype(0) == DType::bf16) return loss<bf16>(call);
  loss<float>(call);
}

void cross_entropy_backward(const KernelCall& call) {
  if (call.in_dtype(1) == DType::bf16) return gradient<bf16>(call);
  gradient<float>(call);
}

}  // namespace llm::cuda
