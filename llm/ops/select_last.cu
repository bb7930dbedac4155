// select_last: x (B, T, C) -> (B, 1, C), the row of the last token. A block of threads copies part of one row; a row is
// read once and written once.
#include "llm/device/cuda.h"
#include "llm/device/simt.h"
#include "llm/ops/cuda_kernels.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256;

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) select_last_kernel(const T* __restrict__ x,  // (B, T, C)
                                                               T* __restrict__ out,      // (B, C)
                                                               int64_t tokens, int64_t channels) {
  const int64_t b = blockIdx.x, c = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kWidth;
  using Pack = simt::Pack<T, kWidth>;
  if (simt::in_bounds(c < channels))
    *reinterpret_cast<Pack*>(out + b * channels + c) =
        *reinterpret_cast<const Pack*>(x + (b * tokens + tokens - 1) * channels + c);
}

template <class T>
void select_last_as(const KernelCall& call) {
  const T* x = call.in<T>(0);
  T* out = call.out<T>(0);
  const int64_t batch = call.in_shape(0)[0], tokens = call.in_shape(0)[1], channels = call.in_shape(0)[2];
  const bool packs = simt::packs(x, channels) && simt::packs(out, channels);
  const int64_t width = packs ? simt::kPack<T> : 1;
  const int64_t chunks = (channels / width + kThreads - 1) / kThreads;
  simt::launch(call.cuda->stream(), dim3(static_cast<unsigned>(batch), static_cast<unsigned>(chunks)), dim3(kThreads),
               0, packs ? select_last_kernel<T, simt::kPack<T>> : select_last_kernel<T, 1>, x, out, tokens, channels);
}

}  // namespace

void select_last(const KernelCall& call) {
  call.in_dtype(0) == DType::bf16 ? select_last_as<bf16>(call) : select_last_as<float>(call);
}

}  // namespace llm::cuda
