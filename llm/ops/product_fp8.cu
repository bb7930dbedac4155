// product_fp8 on the GPU: by cuBLASLt, or by the plain kernel where cuBLASLt has no algorithm.
#include "llm/device/gemm_cuda.h"
#include "llm/ops/cuda_kernels.h"

namespace llm::cuda {

void product_fp8(const KernelCall& call) {
  const int64_t m = call.in_shape(0).rows(), k = call.in_shape(0).last(), n = call.in_shape(2)[0];
  CudaGemm gemm = {.m = m,
                   .n = n,
                   .k = k,
                   .a = {call.in<void>(0), call.in_dtype(0), k, false},
                   .b = {call.in<void>(2), call.in_dtype(2), k, true},
                   .c = call.out<void>(0),
                   .c_dtype = call.out_dtype(0),
                   .c_stride = n,
                   .accumulate = call.accumulates(0),
                   .a_scale = call.in(1),
                   .b_scale = call.in(3)};
  if (call.has_input(4)) gemm.epilogue = GemmEpilogue::bias, gemm.bias = call.in<void>(4);
  cuda_gemm(*call.cuda, gemm);
}

}  // namespace llm::cuda
