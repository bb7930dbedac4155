// merge_attention on the GPU: a thread takes a pack of a head's elements; each is read once and written once.
#include "llm/ops/merge_attention.h"

#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/typed_cuda.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256;

// out (B, T, H D), sums (B, H, T), part (B, t, H D), part_sums (B, H, t) -> merged (B, T, H D), which may be `out`, and
// merged_sums (B, H, T). D is a multiple of kWidth.
template <class A, class B, class C, int kWidth>
__global__ void __launch_bounds__(kThreads)
    merge_attention_kernel(MergeShape s, const A* out, const float* __restrict__ sums, const B* __restrict__ part,
                           const float* __restrict__ part_sums, C* merged, float* __restrict__ merged_sums,
                           int64_t packs) {
  const int64_t pack = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (!simt::in_bounds(pack < packs)) return;
  const int64_t at = pack * kWidth, head = at / s.head_size % s.heads, row = at / (s.head_size * s.heads);
  const int64_t sum = s.sum_of(row, head, s.tokens), other = s.part_row(row);
  const bool is_first = at % s.head_size == 0;  // of its head
  const auto of_out = *reinterpret_cast<const simt::Pack<A, kWidth>*>(out + at);
  simt::Pack<C, kWidth> result;
  if (other < 0) {
    if (is_first) merged_sums[sum] = sums[sum];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) result.set(k, of_out.get(k));
  } else {
    const MergeWeights w(sums[sum], part_sums[s.sum_of(other, head, s.part_tokens)]);
    if (is_first) merged_sums[sum] = w.log_sum_exp;
    const int64_t from = at + (other - row) * s.heads * s.head_size;
    const auto of_part = *reinterpret_cast<const simt::Pack<B, kWidth>*>(part + from);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) result.set(k, of_out.get(k) * w.first + of_part.get(k) * w.second);
  }
  *reinterpret_cast<simt::Pack<C, kWidth>*>(merged + at) = result;
}

}  // namespace

void merge_attention(const KernelCall& call) {
  const MergeShape s = merge_shape(call);
  with_type(call.in_dtype(0), [&](auto of_a) {
    with_type(call.in_dtype(2), [&](auto of_b) {
      with_type(call.out_dtype(0), [&](auto of_c) {
        using A = decltype(of_a);
        using B = decltype(of_b);
        using C = decltype(of_c);
        constexpr int kWidth = simt::kPack<float>;
        const A* const out = call.in<A>(0);
        const B* const part = call.in<B>(2);
        C* const merged = call.out<C>(0);
        const bool packs =
            simt::packs(out, s.head_size) && simt::packs(part, s.head_size) && simt::packs(merged, s.head_size);
        const int64_t items = call.out_shape(0).elements() / (packs ? kWidth : 1);
        simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>((items + kThreads - 1) / kThreads)),
                     dim3(kThreads), 0,
                     packs ? merge_attention_kernel<A, B, C, kWidth> : merge_attention_kernel<A, B, C, 1>, s, out,
                     call.in(1), part, call.in(3), merged, call.out(1), items);
      });
    });
  });
}

}  // namespace llm::cuda
