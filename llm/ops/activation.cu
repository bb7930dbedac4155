// gelu and relu2, element by element (elementwise_cuda.h): h -> a; and their backward: (da, h) -> dh. Each reads its inputs
// and writes its output once.
#include "llm/device/cuda.h"
#include "llm/ops/activation_cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/elementwise_cuda.h"

namespace llm::cuda {
namespace {

template <class Function>
struct Value {
  __device__ float operator()(float h) const { return Function::value(h); }
};

template <class Function>
struct Derivative {
  __device__ float operator()(float da, float h) const { return da * Function::derivative(h); }
};

template <class Function, class T>
void value_as(const KernelCall& call) {
  elementwise_noting(call.cuda->stream(), call.out_shape(0).elements(), largest_of(call), Value<Function>{},
                     call.out<T>(0), call.in<T>(0));
}

template <class Function>
void value(const KernelCall& call) {
  call.in_dtype(0) == DType::bf16 ? value_as<Function, bf16>(call) : value_as<Function, float>(call);
}

template <class Function, class T>
void derivative_as(const KernelCall& call) {
  elementwise_noting(call.cuda->stream(), call.out_shape(0).elements(), largest_of(call), Derivative<Function>{},
                     call.out<T>(0), call.in<T>(0), call.in<T>(1));
}

template <class Function>
void derivative(const KernelCall& call) {
  call.in_dtype(0) == DType::bf16 ? derivative_as<Function, bf16>(call) : derivative_as<Function, float>(call);
}

}  // namespace

void gelu(const KernelCall& call) { value<Gelu>(call); }
void gelu_backward(const KernelCall& call) { derivative<Gelu>(call); }
void relu2(const KernelCall& call) { value<Relu2>(call); }
void relu2_backward(const KernelCall& call) { derivative<Relu2>(call); }

}  // namespace llm::cuda
