// Matrix products on the GPU: by cuBLASLt (llm/device/gemm_plans.h), or by a plain kernel
// (llm/device/gemm_plain_cuda.h) where cuBLASLt has no algorithm. Row-major, like everything here: c (m, n) =
// epilogue(a (m, k) b (k, n)).
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#include "llm/base/shape.h"
#include "llm/device/cuda.h"

namespace llm {

// A matrix in memory, `stride` elements from one row (transposed: from one column) of the matrix to the next.
struct CudaMatrix {
  const void* data;
  DType dtype;
  int64_t stride;
  bool transposed;
};

enum class GemmEpilogue {
  none,
  bias,           // c = product + bias (n)
  gelu,           // auxiliary = product + bias, c = gelu(product + bias) in the tanh form; bias, auxiliary may be null
  gelu_backward,  // c = product * gelu'(auxiliary)
  bias_gradient_of_a,  // c = product, and bias (m) = the sums of the rows of a (over k): db beside dW = dy^T x
};

struct CudaGemm {
  int64_t m, n, k;
  CudaMatrix a, b;
  void* c;
  DType c_dtype;
  int64_t c_stride;
  bool accumulate = false;  // c += product; only with no epilogue or with bias_gradient_of_a, which overwrites its bias
  GemmEpilogue epilogue = GemmEpilogue::none;
  const void* bias = nullptr;  // (n) of c's dtype, read; for bias_gradient_of_a (m) floats, written
  void* auxiliary = nullptr;   // (m, n) with c's stride, of c's dtype
  // fp8: the factors (1) by which the stored values of a and b must be multiplied, in the device's memory.
  const float *a_scale = nullptr, *b_scale = nullptr;
};

// Runs the product on the device's stream; may be captured. Sums are fp32; two fp32 matrices are multiplied in full
// fp32 unless `device.allow_tf32`. Types: fp32 x fp32 -> fp32; bf16 x bf16 and fp8 x fp8 -> bf16 or fp32. The same
// arguments give the same bits on one kind of device and version of cuBLASLt. Throws Error that names the product.
//
// Every product can be had without an epilogue or with a bias. `cuda_gemm_fuses` says whether a product with another
// epilogue can, and should, be run with it: a device that tunes its products times it against `apart`, which computes
// the same result by a product without the epilogue and a kernel of its own. `apart` may run several times, only
// outside of a capture.
void cuda_gemm(CudaDevice& device, const CudaGemm& gemm);
bool cuda_gemm_fuses(CudaDevice& device, const CudaGemm& gemm, const std::function<void()>& apart);

std::string describe(const CudaGemm& gemm);  // for messages: m, n, k and the types

}  // namespace llm
