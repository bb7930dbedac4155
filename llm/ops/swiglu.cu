// swiglu: a = silu(gate) up, and geglu: a = gelu(gate) up (Shazeer 2020), where a row of h is gate (F), then up (F). Their
// backward: (da, h) -> dh, in the layout of h: d_gate = da up f'(gate), d_up = da f(gate), for silu f' = s + gate s (1 -
// s), f = gate s with s = sigmoid(gate).
// A thread takes 16 bytes of gate and the corresponding 16 bytes of up. Every byte is read and written once. dh may lie
// in place of h: a thread reads its elements of both halves before it writes them.
#include "llm/device/cuda.h"
#include "llm/ops/activation_cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/largest_cuda.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256;

struct Silu {
  __device__ static float value(float gate, float up) { return gate * sigmoid(gate) * up; }
  __device__ static void gradients(float d, float gate, float up, float& d_gate, float& d_up) {
    const float s = sigmoid(gate);
    d_gate = d * up * s * (1 + gate * (1 - s)), d_up = d * gate * s;
  }
};

struct GeluGate {
  __device__ static float value(float gate, float up) { return Gelu::value(gate) * up; }
  __device__ static void gradients(float d, float gate, float up, float& d_gate, float& d_up) {
    d_gate = d * up * Gelu::derivative(gate), d_up = d * Gelu::value(gate);
  }
};

// The parameters are addresses of packs: only then does the compiler store a pack at once.
template <class Gate, class T, int kWidth>
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
      out[k] = Gate::value(gate.get(k), up.get(k));
      most = fmaxf(most, fabsf(out[k]));
    }
    a[row * packs + i] = simt::packed<T>(out);
  }
  if (largest) note_largest(to_float(simt::stored<T>(most)), largest, simt::shared_memory<LargestShared>());
}

template <class Gate, class T, int kWidth>
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
      Gate::gradients(d.get(k), gate.get(k), up.get(k), d_gate[k], d_up[k]);
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

template <class Gate, class T, int kWidth>
void forward(const KernelCall& call) {
  using Pack = simt::Pack<T, kWidth>;
  const int64_t rows = call.out_shape(0).rows(), packs = call.out_shape(0).last() / kWidth;
  uint32_t* largest = largest_of(call);
  simt::launch(call.cuda->stream(), grid(rows, packs), dim3(kThreads), largest ? sizeof(LargestShared) : 0,
               swiglu_kernel<Gate, T, kWidth>, call.in<Pack>(0), call.out<Pack>(0), packs, largest);
}

template <class Gate, class T, int kWidth>
void backward(const KernelCall& call) {
  using Pack = simt::Pack<T, kWidth>;
  const int64_t rows = call.in_shape(0).rows(), packs = call.in_shape(0).last() / kWidth;
  uint32_t* largest = largest_of(call);
  simt::launch(call.cuda->stream(), grid(rows, packs), dim3(kThreads), largest ? sizeof(LargestShared) : 0,
               swiglu_backward_kernel<Gate, T, kWidth>, call.in<Pack>(0), call.in<Pack>(1), call.out<Pack>(0), packs,
               largest);
}

template <class Gate, class T>
void forward_as(const KernelCall& call) {
  const int64_t F = call.out_shape(0).last();
  const bool packs = simt::packs(call.in<T>(0), F) && simt::packs(call.out<T>(0), F);
  packs ? forward<Gate, T, simt::kPack<T>>(call) : forward<Gate, T, 1>(call);
}

template <class Gate, class T>
void backward_as(const KernelCall& call) {
  const int64_t F = call.in_shape(0).last();
  const bool packs = simt::packs(call.in<T>(0), F) && simt::packs(call.in<T>(1), F) && simt::packs(call.out<T>(0), F);
  packs ? backward<Gate, T, simt::kPack<T>>(call) : backward<Gate, T, 1>(call);
}

template <class Gate>
void forward(const KernelCall& call) {
  call.in_dtype(0) == DType::bf16 ? forward_as<Gate, bf16>(call) : forward_as<Gate, float>(call);
}
template <class Gate>
void backward(const KernelCall& call) {
  call.in_dtype(0) == DType::bf16 ? backward_as<Gate, bf16>(call) : backward_as<Gate, float>(call);
}

}  // namespace

void swiglu(const KernelCall& call) { forward<Silu>(call); }
void swiglu_backward(const KernelCall& call) { backward<Silu>(call); }
void geglu(const KernelCall& call) { forward<GeluGate>(call); }
void geglu_backward(const KernelCall& call) { backward<GeluGate>(call); }

}  // namespace llm::cuda
