// linear and its two backward products, by cuda_gemm. What goes on top of a product (bias, activation, the bias's gradient)
// is its epilogue where cuBLASLt has that one, and an elementwise pass over the finished product where it has not: one more
// read and write of it.
#include "llm/device/gemm_cuda.h"
#include "llm/graph/op.h"
#include "llm/ops/activation_cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/elementwise_cuda.h"
#include "llm/ops/linear_cuda.h"

namespace llm::cuda {
namespace {

ActivationKind activation_of(const KernelCall& call) {
  return static_cast<ActivationKind>(call.node.attributes.integer("activation", 0));
}

template <class Activation>
struct Activate {
  __device__ float operator()(float x) const { return Activation::value(x); }
};
template <class Activation>
struct MultiplyByDerivative {
  __device__ float operator()(float d, float h) const { return d * Activation::derivative(h); }
};

// Calls body(T{}) for the type of input i.
template <class Body>
void with_type(const KernelCall& call, size_t i, Body&& body) {
  call.in_dtype(i) == DType::bf16 ? body(bf16{}) : body(float{});
}

CudaMatrix matrix(const KernelCall& call, size_t i, int64_t stride, bool transposed) {
  return {call.in<void>(i), call.in_dtype(i), stride, transposed};
}

template <class T>
void activate(const KernelCall& call, int64_t count, const T* y, T* activated) {
  if (activation_of(call) == ActivationKind::gelu)
    elementwise(call.cuda->stream(), count, Activate<Gelu>{}, activated, y);
  else
    elementwise(call.cuda->stream(), count, Activate<Relu2>{}, activated, y);
}

template <class T>
void multiply_by_derivative(const KernelCall& call, int64_t count, const T* h, T* dx) {
  if (activation_of(call) == ActivationKind::gelu)
    elementwise(call.cuda->stream(), count, MultiplyByDerivative<Gelu>{}, dx, static_cast<const T*>(dx), h);
  else
    elementwise(call.cuda->stream(), count, MultiplyByDerivative<Relu2>{}, dx, static_cast<const T*>(dx), h);
}

}  // namespace

// x (.., I), W (O, I), [b (O)] -> y (.., O), [activated (.., O)]
void linear(const KernelCall& call) {
  if (linear_few_rows(call)) return;
  const int64_t m = call.in_shape(0).rows(), n = call.in_shape(1)[0], k = call.in_shape(1)[1];
  const ActivationKind activation = activation_of(call);
  void *y = call.out<void>(0), *activated = call.out<void>(1);
  CudaGemm plain{m, n, k, matrix(call, 0, k, false), matrix(call, 1, k, true), y, call.in_dtype(0), n};
  plain.bias = call.in<void>(2);
  plain.epilogue = plain.bias ? GemmEpilogue::bias : GemmEpilogue::none;
  // Without a reader of y its place is the activated output, written twice.
  if (!y) plain.c = activated;
  const auto apart = [&] {
    cuda_gemm(*call.cuda, plain);
    if (activation == ActivationKind::none) return;
    with_type(call, 0, [&](auto type) {
      using T = decltype(type);
      activate(call, m * n, static_cast<const T*>(plain.c), call.out<T>(1));
    });
  };
  if (activation == ActivationKind::gelu) {
    CudaGemm fused = plain;
    fused.epilogue = GemmEpilogue::gelu;
    fused.c = activated;
    fused.auxiliary = y;
    if (cuda_gemm_fuses(*call.cuda, fused, apart)) return cuda_gemm(*call.cuda, fused);
  }
  apart();
}

// dy (.., O), W (O, I), [h (.., I)] -> dx (.., I)
void linear_backward_input(const KernelCall& call) {
  const int64_t m = call.in_shape(0).rows(), n = call.in_shape(1)[1], k = call.in_shape(1)[0];
  const CudaGemm plain{
      m, n, k, matrix(call, 0, k, false), matrix(call, 1, n, false), call.out<void>(0), call.in_dtype(0), n};
  const ActivationKind activation = activation_of(call);
  const auto apart = [&] {
    cuda_gemm(*call.cuda, plain);
    if (activation == ActivationKind::none) return;
    with_type(call, 0, [&](auto type) {
      using T = decltype(type);
      multiply_by_derivative(call, m * n, call.in<T>(2), call.out<T>(0));
    });
  };
  if (activation == ActivationKind::gelu) {
    CudaGemm fused = plain;
    fused.epilogue = GemmEpilogue::gelu_backward;
    fused.auxiliary = const_cast<void*>(call.in<void>(2));  // read only
    if (cuda_gemm_fuses(*call.cuda, fused, apart)) return cuda_gemm(*call.cuda, fused);
  }
  apart();
}

// dy (.., O), x (.., I) -> dW (O, I), [db (O)], both fp32
void linear_backward_weight(const KernelCall& call) {
  const int64_t rows = call.in_shape(0).rows(), O = call.in_shape(0).last(), I = call.in_shape(1).last();
  CudaGemm plain{O, I, rows, matrix(call, 0, O, true), matrix(call, 1, I, false), call.out<void>(0), DType::fp32, I};
  plain.accumulate = call.accumulates(0);
  float* db = call.out(1);
  if (!db) return cuda_gemm(*call.cuda, plain);
  const auto apart = [&] {
    cuda_gemm(*call.cuda, plain);
    bias_gradient(call.cuda->stream(), call.in<void>(0), call.in_dtype(0), rows, O, call.accumulates(1),
                  call.workspace(), db);
  };
  // The epilogue cannot add to what db holds, so that sum has a place of its own first.
  const bool adds = call.accumulates(1);
  CudaGemm fused = plain;
  fused.epilogue = GemmEpilogue::bias_gradient_of_a;
  fused.bias = adds ? call.workspace() : db;
  if (!fused.bias || !cuda_gemm_fuses(*call.cuda, fused, apart)) return apart();
  cuda_gemm(*call.cuda, fused);
  if (adds) elementwise(call.cuda->stream(), O, Add{}, db, static_cast<const float*>(db), call.workspace());
}

}  // namespace llm::cuda
