// take_tokens and add_tokens on the GPU: a thread takes a pack of a token's elements; each is read once and written once.
#include "llm/ops/token_range.h"

#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/typed_cuda.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t items) { return static_cast<unsigned>((items + kThreads - 1) / kThreads); }

// y (sequences, tokens, width) = tokens of x (sequences, all, width), kWidth neighbouring elements a thread.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    take_kernel(TokenRange r, const T* __restrict__ x, T* __restrict__ y, int64_t packs) {
  using Pack = simt::Pack<T, kWidth>;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, of_sequence = r.tokens * r.width / kWidth;
  if (!simt::in_bounds(i < packs)) return;
  const int64_t sequence = i / of_sequence;
  const int64_t from = (sequence * r.all + r.first) * r.width + (i - sequence * of_sequence) * kWidth;
  *reinterpret_cast<Pack*>(y + i * kWidth) = *reinterpret_cast<const Pack*>(x + from);
}

// c (sequences, all, width) = a, plus b (sequences, tokens, width) where it has the token. c may be a.
template <class A, class B, class C, int kWidth>
__global__ void __launch_bounds__(kThreads) add_kernel(TokenRange r, const A* a, const B* b, C* c, int64_t packs) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  if (!simt::in_bounds(i < packs * kWidth)) return;
  const int64_t row = i / r.width, number = r.number(row);
  const auto of_a = *reinterpret_cast<const simt::Pack<A, kWidth>*>(a + i);
  simt::Pack<B, kWidth> of_b{};
  if (number >= 0) of_b = *reinterpret_cast<const simt::Pack<B, kWidth>*>(b + number * r.width + i - row * r.width);
  simt::Pack<C, kWidth> sum;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) sum.set(k, of_a.get(k) + of_b.get(k));
  *reinterpret_cast<simt::Pack<C, kWidth>*>(c + i) = sum;
}

}  // namespace

void take_tokens(const KernelCall& call) {
  const TokenRange r = taken_range(call.node, call.in_shape(0));
  with_type(call.in_dtype(0), [&](auto typed) {
    using T = decltype(typed);
    const T* const x = call.in<T>(0);
    T* const y = call.out<T>(0);
    const bool packs = simt::packs(x, r.all * r.width) && simt::packs(y, r.tokens * r.width) &&
                       r.first * r.width % simt::kPack<T> == 0;
    const int64_t items = call.out_shape(0).elements() / (packs ? simt::kPack<T> : 1);
    simt::launch(call.cuda->stream(), dim3(blocks_for(items)), dim3(kThreads), 0,
                 packs ? take_kernel<T, simt::kPack<T>> : take_kernel<T, 1>, r, x, y, items);
  });
}

void add_tokens(const KernelCall& call) {
  const TokenRange r = added_range(call.node, call.in_shape(0), call.in_shape(1));
  with_type(call.in_dtype(0), [&](auto of_a) {
    with_type(call.in_dtype(1), [&](auto of_b) {
      with_type(call.out_dtype(0), [&](auto of_c) {
        using A = decltype(of_a);
        using B = decltype(of_b);
        using C = decltype(of_c);
        constexpr int kWidth = simt::kPack<float>;
        const A* const a = call.in<A>(0);
        const B* const b = call.in<B>(1);
        C* const c = call.out<C>(0);
        const bool packs = simt::packs(a, r.width) && simt::packs(b, r.width) && simt::packs(c, r.width);
        const int64_t items = call.out_shape(0).elements() / (packs ? kWidth : 1);
        simt::launch(call.cuda->stream(), dim3(blocks_for(items)), dim3(kThreads), 0,
                     packs ? add_kernel<A, B, C, kWidth> : add_kernel<A, B, C, 1>, r, a, b, c, items);
      });
    });
  });
}

}  // namespace llm::cuda
