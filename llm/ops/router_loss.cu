// router_loss, its backward pass, and router_statistics on the GPU. A thread takes a token.
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/reduce_cuda.h"
#include "llm/ops/router_rows.h"
#include "llm/ops/router_sums.h"
#include "llm/ops/typed_cuda.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 128, kSumThreads = static_cast<int>(kRouterBlock);

struct Settings {
  int64_t rows;
  int experts;
  float share, balance_weight, z_weight;
};

Settings settings_of(const KernelCall& call, const Shape& logits) {
  const Attributes& a = call.node.attributes;
  return {logits.rows(), static_cast<int>(logits.last()),
          1 / static_cast<float>(logits.rows() * a.integer("chosen") * a.integer("ranks", 1)),
          static_cast<float>(a.number("balance_weight", 0)), static_cast<float>(a.number("z_weight", 0))};
}

dim3 blocks_of(int64_t rows) { return dim3(static_cast<unsigned>((rows + kThreads - 1) / kThreads)); }

template <class T>
__global__ void __launch_bounds__(kThreads) loss_kernel(const T* __restrict__ logits,        // (rows, E)
                                                        const int32_t* __restrict__ counts,  // (E)
                                                        Settings s, float* losses) {         // (rows)
  const int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (!simt::in_bounds(r < s.rows)) return;
  const RouterTerms t = router_terms(logits + r * s.experts, counts, s.experts, s.share);
  losses[r] = s.balance_weight * t.balance + s.z_weight * t.log_sum_exp * t.log_sum_exp;
}

template <class T>
__global__ void __launch_bounds__(kThreads) gradient_kernel(const float* __restrict__ d_losses,  // (rows)
                                                            const T* __restrict__ logits,        // (rows, E)
                                                            const int32_t* __restrict__ counts,  // (E)
                                                            Settings s, T* d_logits) {           // (rows, E)
  const int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (simt::in_bounds(r < s.rows))
    router_loss_gradient(d_losses[r], logits + r * s.experts, counts, s.experts, s.share, s.balance_weight, s.z_weight,
                         d_logits + r * s.experts, [](float x) { return simt::stored<T>(x); });
}

struct Shared {
  double sums[kRouterSums][32];
};

template <class T>
__global__ void __launch_bounds__(kSumThreads) sums_kernel(const T* __restrict__ logits,        // (rows, E)
                                                           const int32_t* __restrict__ counts,  // (E)
                                                           Settings s, double* sums) {          // (blocks, kRouterSums)
  auto& shared = simt::shared_memory<Shared>();
  const int64_t r = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  RouterTerms t = {0, 0, 0};
  if (simt::in_bounds(r < s.rows)) t = router_terms(logits + r * s.experts, counts, s.experts, s.share);
  const float terms[kRouterSums] = {t.balance, t.log_sum_exp * t.log_sum_exp, t.entropy};
#pragma unroll
  for (int i = 0; i < kRouterSums; ++i) {
    const double sum = block_sum(static_cast<double>(terms[i]), shared.sums[i]);
    if (threadIdx.x == 0) sums[blockIdx.x * kRouterSums + i] = sum;
  }
}

__global__ void __launch_bounds__(kThreads) statistics_kernel(const double* __restrict__ sums,  // (blocks, kRouterSums)
                                                              const int32_t* __restrict__ counts,  // (E)
                                                              int64_t blocks, int experts, bool add,
                                                              float* out) {  // (E + kRouterSums)
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (!simt::in_bounds(i < experts + kRouterSums)) return;
  double sum = add ? static_cast<double>(out[i]) : 0;
  if (i < experts) sum += counts[i];
  for (int64_t b = 0; b < blocks && i >= experts; ++b) sum += sums[b * kRouterSums + i - experts];
  out[i] = static_cast<float>(sum);
}

}  // namespace

void router_loss(const KernelCall& call) {
  const Settings s = settings_of(call, call.in_shape(0));
  with_type(call.in_dtype(0), [&](auto typed) {
    using T = decltype(typed);
    simt::launch(call.cuda->stream(), blocks_of(s.rows), dim3(kThreads), 0, loss_kernel<T>, call.in<T>(0),
                 call.in_int(1), s, call.out(0));
  });
}

void router_loss_backward(const KernelCall& call) {
  const Settings s = settings_of(call, call.in_shape(1));
  with_type(call.in_dtype(1), [&](auto typed) {
    using T = decltype(typed);
    simt::launch(call.cuda->stream(), blocks_of(s.rows), dim3(kThreads), 0, gradient_kernel<T>, call.in(0),
                 call.in<T>(1), call.in_int(2), s, call.out<T>(0));
  });
}

void router_statistics(const KernelCall& call) {
  const Settings s = settings_of(call, call.in_shape(0));
  const int64_t blocks = router_blocks(s.rows);
  auto* const sums = call.workspace<double>();
  with_type(call.in_dtype(0), [&](auto typed) {
    using T = decltype(typed);
    simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(blocks)), dim3(kSumThreads), sizeof(Shared),
                 sums_kernel<T>, call.in<T>(0), call.in_int(1), s, sums);
  });
  simt::launch(call.cuda->stream(), blocks_of(s.experts + kRouterSums), dim3(kThreads), 0, statistics_kernel, sums,
               call.in_int(1), blocks, s.experts, call.accumulates(0), call.out(0));
}

}  // namespace llm::cuda
