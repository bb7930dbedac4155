// expert_rows, expert_sum and their backward passes on the GPU. A thread takes up to 16 bytes of a row. Bytes: each row
// is read and written once; only a token's row is read once for each of its experts, from the cache.
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/reduce_cuda.h"
#include "llm/ops/typed_cuda.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 128;

// Row r of `to` becomes row order[r] / K of `from`, times weights[order[r]].
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) gather_kernel(const simt::Pack<T, kWidth>* __restrict__ from,
                                                          const float* __restrict__ weights,  // (choices), or null
                                                          const int32_t* __restrict__ order, int K, int64_t packs,
                                                          simt::Pack<T, kWidth>* to) {  // (choices, packs)
  const int64_t row = blockIdx.x, i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (!simt::in_bounds(i < packs)) return;
  const int32_t choice = order[row];
  auto pack = from[choice / K * packs + i];
  if (weights) {
    const float weight = weights[choice];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) pack.set(k, pack.get(k) * weight);
  }
  to[row * packs + i] = pack;
}

// Row t of `to` becomes the sum of the rows place[t K + k] of `from`, times weights[t K + k].
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const simt::Pack<T, kWidth>* __restrict__ from,
               const float* __restrict__ weights,                  // (tokens, K), or null
               const int32_t* __restrict__ place,                  // (tokens, K)
               int K, int64_t packs, simt::Pack<T, kWidth>* to) {  // (tokens, packs)
  const int64_t token = blockIdx.x, i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (!simt::in_bounds(i < packs)) return;
  float sum[kWidth] = {};
  for (int k = 0; k < K; ++k) {
    const int64_t choice = token * K + k;
    const auto pack = from[place[choice] * packs + i];
    const float weight = weights ? weights[choice] : 1;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum[j] += pack.get(j) * weight;
  }
  to[token * packs + i] = simt::packed<T>(sum);
}

struct Shared {
  float sums[32];
};

// d_weights[i] is the product of the gradient of choice i's token and what its expert gave. A block takes a choice.
template <class T>
__global__ void __launch_bounds__(kThreads) weight_gradient_kernel(const T* __restrict__ d,            // (tokens, C)
                                                                   const T* __restrict__ y,            // (choices, C)
                                                                   const int32_t* __restrict__ place,  // (choices)
                                                                   int K, int64_t C, float* d_weights) {  // (choices)
  auto& s = simt::shared_memory<Shared>();
  const T *of_token = d + blockIdx.x / static_cast<unsigned>(K) * C, *row = y + place[blockIdx.x] * C;
  float sum = 0;
  for (int64_t c = threadIdx.x; c < C; c += kThreads) sum += to_float(of_token[c]) * to_float(row[c]);
  sum = block_sum(sum, s.sums);
  if (threadIdx.x == 0) d_weights[blockIdx.x] = sum;
}

dim3 grid(int64_t rows, int64_t packs) {
  return dim3(static_cast<unsigned>(rows), static_cast<unsigned>((packs + kThreads - 1) / kThreads));
}

// Calls body(T, width of a pack) by the type and the addresses of both matrices of C columns.
template <class Body>
void with_packs(DType dtype, const void* from, const void* to, int64_t C, Body&& body) {
  with_type(dtype, [&](auto typed) {
    using T = decltype(typed);
    if (simt::packs(static_cast<const T*>(from), C) && simt::packs(static_cast<const T*>(to), C))
      body(typed, std::integral_constant<int, simt::kPack<T>>());
    else
      body(typed, std::integral_constant<int, 1>());
  });
}

void gather(const KernelCall& call, const void* from, const float* weights, const int32_t* order, int64_t K,
            int64_t rows, int64_t C, void* to) {
  with_packs(call.in_dtype(0), from, to, C, [&](auto typed, auto width) {
    using Pack = simt::Pack<decltype(typed), width>;
    simt::launch(call.cuda->stream(), grid(rows, C / width), dim3(kThreads), 0, gather_kernel<decltype(typed), width>,
                 static_cast<const Pack*>(from), weights, order, static_cast<int>(K), C / width,
                 static_cast<Pack*>(to));
  });
}

void add_up(const KernelCall& call, const void* from, const float* weights, const int32_t* place, int64_t K,
            int64_t tokens, int64_t C, void* to) {
  with_packs(call.in_dtype(0), from, to, C, [&](auto typed, auto width) {
    using Pack = simt::Pack<decltype(typed), width>;
    simt::launch(call.cuda->stream(), grid(tokens, C / width), dim3(kThreads), 0, sum_kernel<decltype(typed), width>,
                 static_cast<const Pack*>(from), weights, place, static_cast<int>(K), C / width,
                 static_cast<Pack*>(to));
  });
}

}  // namespace

void expert_rows(const KernelCall& call) {
  const Shape& place = call.in_shape(2);
  gather(call, call.in<void>(0), nullptr, call.in_int(1), place[2], place.elements(), call.in_shape(0).last(),
         call.out<void>(0));
}

void expert_rows_backward(const KernelCall& call) {
  const Shape& place = call.in_shape(1);
  add_up(call, call.in<void>(0), nullptr, call.in_int(1), place[2], place.rows(), call.in_shape(0).last(),
         call.out<void>(0));
}

void expert_sum(const KernelCall& call) {
  const Shape& place = call.in_shape(3);
  add_up(call, call.in<void>(0), call.in(1), call.in_int(3), place[2], place.rows(), call.in_shape(0).last(),
         call.out<void>(0));
}

void expert_sum_backward(const KernelCall& call) {
  const Shape& place = call.in_shape(4);
  const int64_t C = call.in_shape(0).last();
  gather(call, call.in<void>(0), call.in(2), call.in_int(3), place[2], place.elements(), C, call.out<void>(0));
  with_type(call.in_dtype(0), [&](auto typed) {
    using T = decltype(typed);
    simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(place.elements())), dim3(kThreads), sizeof(Shared),
                 weight_gradient_kernel<T>, call.in<T>(0), call.in<T>(1), call.in_int(4), static_cast<int>(place[2]), C,
                 call.out(1));
  });
}

}  // namespace llm::cuda
