// Matrix products on the GPU, by cuBLASLt (llm/device/gemm_plans.h), or by a plain kernel (llm/device/gemm_plain_cuda.h) where
// that has no algorithm. Row-major, like everything here: c (m, n) = epilogue(a (m, k) b (k, n)).
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#include "llm/base/shape.h"
#include "llm/device/cuda.h"

namespace llm {

// A matrix in memory: rows x columns as the product uses it, `stride` elements from a row (transposed: from a column) to the
// next.
struct CudaMatrix {
  const void* data;
  DType dtype;
  int64_t stride;
  bool transposed;
};

enum class GemmEpilogue {
  none,
  bias,           // + bias (n)
  gelu,           // c = gelu(product + bias), in the tanh form, and auxiliary = product + bias; each where not null
  gelu_backward,  // c = product * gelu'(auxiliary)
  bias_gradient_of_a,  // also bias (m) = sum of each row of a (over k): db beside dW = dy^T x
};

struct CudaGemm {
  int64_t m, n, k;
  CudaMatrix a, b;
  void* c;
  DType c_dtype;
  int64_t c_stride;
  bool accumulate = false;  // c += product; of the epilogues then only bias_gradient_of_a, whose bias is written over
  GemmEpilogue epilogue = GemmEpilogue::none;
  const void* bias = nullptr;  // read, of c's dtype; or, for bias_gradient_of_a, written as float
  void* auxiliary = nullptr;   // (m, n) with c's stride, of c's dtype
  // fp8: the factors by which the stored values of a and b must be multiplied, in the device's memory.
  const float *a_scale = nullptr, *b_scale = nullptr;
};

// Runs it on the device's stream; may be captured. Accumulation in fp32; two fp32 matrices are multiplied in full fp32 unless
// `device.allow_tf32`. Types: fp32 x fp32 -> fp32; bf16 x bf16, and fp8 x fp8, -> bf16 or fp32. Same arguments, same bits,
// on one kind of device and version of cuBLASLt. Throws Error that names the product.
//
// Every product can be had with no epilogue or a bias. Whether one with another epilogue can, and should, `cuda_gemm_fuses`
// says: a device that tunes its products times it against `apart`, which makes the same result by a product without the
// epilogue and a kernel of its own. `apart` may be run several times, and only outside of a capture.
void cuda_gemm(CudaDevice& device, const CudaGemm& gemm);
bool cuda_gemm_fuses(CudaDevice& device, const CudaGemm& gemm, const std::function<void()>& apart);

std::string describe(const CudaGemm& gemm);  // for messages: m, n, k and the types

}  // namespace llm
