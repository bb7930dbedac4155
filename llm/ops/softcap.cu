// softcap and its backward, element by element (elementwise_cuda.h).
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/elementwise_cuda.h"

namespace llm::cuda {
namespace {

struct Cap {
  float cap;
  __device__ float operator()(float x) const { return cap * tanhf(x / cap); }
};

struct CapBackward {
  float cap;
  __device__ float operator()(float dy, float y) const { return dy * (1 - (y / cap) * (y / cap)); }
};

float cap_of(const KernelCall& call) { return static_cast<float>(call.node.attributes.number("cap")); }

template <class T>
void forward(const KernelCall& call) {
  elementwise(call.cuda->stream(), call.out_shape(0).elements(), Cap{cap_of(call)}, call.out<T>(0), call.in<T>(0));
}

template <class T>
void backward(const KernelCall& call) {
  elementwise(call.cuda->stream(), call.out_shape(0).elements(), CapBackward{cap_of(call)}, call.out<T>(0),
              call.in<T>(0), call.in<T>(1));
}

}  // namespace

void softcap(const KernelCall& call) { call.in_dtype(0) == DType::bf16 ? forward<bf16>(call) : forward<float>(call); }

void softcap_backward(const KernelCall& call) {
  call.in_dtype(0) == DType::bf16 ? backward<bf16>(call) : backward<float>(call);
}

}  // namespace llm::cuda
