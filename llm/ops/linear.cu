// linear and its two backward products, by cuda_gemm. What is added to a product (bias, activation, the bias's
// gradient) is the product's epilogue where cuBLASLt has that epilogue and it is faster, and otherwise a kernel of its
// own.
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
  CudaGemm plain = {.m = m,
                    .n = n,
                    .k = k,
                    .a = matrix(call, 0, k, false),
                    .b = matrix(call, 1, k, true),
                    .c = y,
                    .c_dtype = call.in_dtype(0),
                    .c_stride = n};
  plain.bias = call.in<void>(2);
  plain.epilogue = plain.bias ? GemmEpilogue::bias : GemmEpilogue::none;
  // Without a reader of y, y is first written to the place of the activated output.
  if (!y) plain.c = activated;
  const auto apart = [&] {
    cuda_gemm(*call.cuda, plain);
    if (activation == ActivationKind::none) return;
    with_type(call.in_dtype(0), [&](auto type) {
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
  const CudaGemm plain = {.m = m,
                          .n = n,
                          .k = k,
                          .a = matrix(call, 0, k, false),
                          .b = matrix(call, 1, n, false),
                          .c = call.out<void>(0),
                          .c_dtype = call.in_dtype(0),
                          .c_stride = n};
  const ActivationKind activation = activation_of(call);
  const auto apart = [&] {
    cuda_gemm(*call.cuda, plain);
    if (activation == ActivationKind::none) return;
    with_type(call.in_dtype(0), [&](auto type) {
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
  const CudaGemm plain = {.m = O,
                          .n = I,
                          .k = rows,
                          .a = matrix(call, 0, O, true),
                          .b = matrix(call, 1, I, false),
                          .c = call.out<void>(0),
                          .c_dtype = DType::fp32,
                          .c_stride = I,
                          .accumulate = call.accumulates(0)};
  float* db = call.out(1);
  if (!db) return cuda_gemm(*call.cuda, plain);
  const auto apart = [&] {
    cuda_gemm(*call.cuda, plain);
    bias_gradient(call.cuda->stream(), call.in<void>(0), call.in_dtype(0), rows, O, call.accumulates(1),
                  call.workspace(), db);
  };
  // The epilogue cannot add to what db holds. Where db accumulates, the epilogue writes its sum to the workspace, and
  // another kernel adds it to db.
  const bool adds = call.accumulates(1);
  CudaGemm fused = plain;
  fused.epilogue = GemmEpilogue::bias_gradient_of_a;
  fused.bias = adds ? call.workspace() : db;
  if (!fused.bias || !cuda_gemm_fuses(*call.cuda, fused, apart)) return apart();
  cuda_gemm(*call.cuda, fused);
  if (adds) elementwise(call.cuda->stream(), O, Add{}, db, static_cast<const float*>(db), call.workspace());
}

}  // namespace llm::cuda
