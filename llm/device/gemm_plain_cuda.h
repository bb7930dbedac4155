// The plain matrix product on the GPU: any shape, any address, no tensor cores. For products for which cuBLASLt has no
// algorithm, and for the test bed.
#pragma once
#include "llm/device/gemm_cuda.h"

namespace llm {

// Epilogues: none or bias. Throws Error for others, and for types that `cuda_gemm` does not name.
void gemm_plain_cuda(CUstream_st* stream, const CudaGemm& gemm);

}  // namespace llm
