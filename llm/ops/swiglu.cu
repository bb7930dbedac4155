// swiglu: a = silu(gate) up (Shazeer 2020), where a row of h is gate (F), then up (F). Its backward: (da, h) -> dh, in
// the layout of h: d_gate = da up (s + gate s (1 - s)), d_up = da gate s, with s = sigmoid(gate).
// A thread takes 16 bytes of gate and the corresponding 16 bytes of up. Every byte is read and written once. dh may lie
// in place of h: a thread reads its elements of both halves before it writes them.
#include "llm/device/cuda.h"
#include "llm/ops/activation_cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/largest_cuda.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256;

// The parameters are addresses of packs: only then does the compiler store a pack at once.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) swiglu_kernel(const simt::Pack<T, kWidth>* h,  // (rows, 2, packs)
                                                          simt::Pack<T, kWidth>* a,        // (rows, packs)
                                                          int64_t packs,                   // F / kWidth
                                                          uint32_t* largest) {             // (1), of |a|, or null
  const int64_t row = blockIdx.x, i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  float most = 0;
  if (simt::in_bounds(i < packs)) {
    const auto gate = h[row * 2 * packs + i], up = h[row * 2 * packs + packs + i];
    float out[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      out[k] = gate.get(k) * sigmoid(gate.get(k)) * up.get(k);
      most = fmaxf(most, fabsf(out[k]));
    }
    a[row * packs + i] = simt::packed<T>(out);
  }
  if (largest) note_largest(to_float(simt::stored<T>(most)), largest, simt::shared_memory<LargestShared>());
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) swiglu_backward_kernel(const simt::Pack<T, kWidth>* da,  // (rows, packs)
                                                                   const simt::Pack<T, kWidth>* h,   // (rows, 2, packs)
                                                                   simt::Pack<T, kWidth>* dh,        // (rows, 2, packs)
                                                                   int64_t packs,                    // F / kWidth
                                                                   uint32_t* largest) {  // (1), of |dh|, or null
  const int64_t row = blockIdx.x, i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  float most = 0;
  if (simt::in_bounds(i < packs)) {
    const auto gate = h[row * 2 * packs + i], up = h[row * 2 * packs + packs + i], d = da[row * packs + i];
    float d_gate[kWidth], d_up[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const float g = gate.get(k), s = sigmoid(g);
      d_gate[k] = d.get(k) * up.get(k) * s * (1 + g * (1 - s));
      d_up[k] = d.get(k) * g * s;
      most = fmaxf(most, fmaxf(fabsf(d_gate[k]), fabsf(d_up[k])));
    }
    dh[row * 2 * packs + i] = simt::packed<T>(d_gate);
    dh[row * 2 * packs + packs + i] = simt::packed<T>(d_up);
  }
  if (largest) note_largest(to_float(simt::stored<T>(most)), largest, simt::shared_memory<LargestShared>());
}

dim3 grid(int64_t rows, int64_t packs) {
  return dim3(static_cast<unsigned>(rows), static_cast<unsigned>((packs + kThreads - 1) / kThreads));
}

template <class T, int kWidth>
void forward(const KernelCall& call) {
  using Pack = simt::Pack<T, kWidth>;
  const int64_t rows = call.out_shape(0).rows(), packs = call.out_shape(0).last() / kWidth;
  uint32_t* largest = largest_of(call);
  simt::launch(call.cuda->stream(), grid(rows, packs), dim3(kThreads), largest ? sizeof(LargestShared) : 0,
               swiglu_kernel<T, kWidth>, call.in<Pack>(0), call.out<Pack>(0), packs, largest);
}

template <class T, int kWidth>
void backward(const KernelCall& call) {
  using Pack = simt::Pack<T, kWidth>;
  const int64_t rows = call.in_shape(0).rows(), packs = call.in_shape(0).last() / kWidth;
  uint32_t* largest = largest_of(call);
  simt::launch(call.cuda->stream(), grid(rows, packs), dim3(kThreads), largest ? sizeof(LargestShared) : 0,
               swiglu_backward_kernel<T, kWidth>, call.in<Pack>(0), call.in<Pack>(1), call.out<Pack>(0), packs,
               largest);
}

template <class T>
void forward_as(const KernelCall& call) {
  const int64_t F = call.out_shape(0).last();
  const bool packs = simt::packs(call.in<T>(0), F) && simt::packs(call.out<T>(0), F);
  packs ? forward<T, simt::kPack<T>>(call) : forward<T, 1>(call);
}

template <class T>
void backward_as(const KernelCall& call) {
  const int64_t F = call.in_shape(0).last();
  const bool packs = simt::packs(call.in<T>(0), F) && simt::packs(call.in<T>(1), F) && simt::packs(call.out<T>(0), F);
  packs ? backward<T, simt::kPack<T>>(call) : backward<T, 1>(call);
}

}  // namespace

void swiglu(const KernelCall& call) {
  call.in_dtype(0) == DType::bf16 ? forward_as<bf16>(call) : forward_as<float>(call);
}
void swiglu_backward(const KernelCall& call) {
  call.in_dtype(0) == DType::bf16 ? backward_as<bf16>(call) : backward_as<float>(call);
}

}  // namespace llm::cuda
