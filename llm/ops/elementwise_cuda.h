// Kernels that compute each element of the output from the same element of the inputs: out = function(in...).
//
// A thread takes as many neighbouring elements as 16 bytes hold of the widest type, so that neighbouring threads read
// and write neighbouring memory, every byte once; the last thread takes the remaining elements. The output may lie in
// place of an input: a thread reads its elements before it writes them, and no other thread reads them.
#pragma once
#include <algorithm>
#include <utility>

#include "llm/device/cuda.h"
#include "llm/ops/largest_cuda.h"
#include "llm/ops/typed_cuda.h"

namespace llm::cuda {

inline constexpr int kElementThreads = 256;

template <int kWidth, class Function, class Out, class... In>
__global__ void __launch_bounds__(kElementThreads)
    elementwise_kernel(int64_t n, Function function, uint32_t* largest, Out* out, const In*... in) {  // all (n)
  float most = 0;
  const int64_t first = (int64_t{blockIdx.x} * kElementThreads + threadIdx.x) * kWidth;
  if (simt::in_bounds(first + kWidth <= n)) {
    const auto compute = [&](const auto... x) {
      float y[kWidth];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        y[i] = function(x.get(i)...);
        most = fmaxf(most, fabsf(y[i]));
      }
      return simt::packed<Out>(y);
    };
    *reinterpret_cast<simt::Pack<Out, kWidth>*>(out + first) =
        compute(*reinterpret_cast<const simt::Pack<In, kWidth>*>(in + first)...);
  } else {
    for (int64_t i = first; i < n; ++i) {
      const float y = function(to_float(in[i])...);
      most = fmaxf(most, fabsf(y));
      out[i] = simt::stored<Out>(y);
    }
  }
  if (largest) note_largest(to_float(simt::stored<Out>(most)), largest, simt::shared_memory<LargestShared>());
}

struct Add {
  __device__ float operator()(float a, float b) const { return a + b; }
};

// Starts the kernel. All tensors have n elements and lie in device memory. Function: __device__ float
// operator()(float...) const. `largest` (1): null, or 0 in device memory, which becomes the bits of the largest
// absolute value of the output.
template <class Function, class Out, class... In>
void elementwise_noting(cudaStream_t stream, int64_t n, uint32_t* largest, Function function, Out* out,
                        const In*... in) {
  constexpr int kWidth = 16 / static_cast<int>(std::max({sizeof(Out), sizeof(In)...}));
  const auto aligned = [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; };
  const bool packs = (aligned(out) && ... && aligned(in));
  const int64_t threads = packs ? (n + kWidth - 1) / kWidth : n;
  simt::launch(stream, dim3(static_cast<unsigned>((threads + kElementThreads - 1) / kElementThreads)),
               dim3(kElementThreads), largest ? sizeof(LargestShared) : 0,
               packs ? elementwise_kernel<kWidth, Function, Out, In...> : elementwise_kernel<1, Function, Out, In...>,
               n, function, largest, out, in...);
}

template <class Function, class Out, class... In>
void elementwise(cudaStream_t stream, int64_t n, Function function, Out* out, const In*... in) {
  elementwise_noting(stream, n, nullptr, function, out, in...);
}

// Output 0 = function(inputs 0, .. and as many as it takes), which have one type and the output's size.
template <size_t... kInputs, class Function>
void elementwise_op(const KernelCall& call, Function function, std::index_sequence<kInputs...>) {
  with_type(call.in_dtype(0), [&](auto typed) {
    using T = decltype(typed);
    elementwise_noting(call.cuda->stream(), call.out_shape(0).elements(), largest_of(call), function, call.out<T>(0),
                       call.in<T>(kInputs)...);
  });
}
template <size_t kInputs, class Function>
void elementwise_op(const KernelCall& call, Function function) {
  elementwise_op(call, function, std::make_index_sequence<kInputs>());
}

}  // namespace llm::cuda
