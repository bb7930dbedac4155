// The check of a call of the CUDA runtime.
#pragma once
#include <cuda_runtime.h>

#include "llm/base/error.h"

namespace llm {

// Throws Error "CUDA: cannot <what>: ..." for any status but success.
template <class... What>
void check_cuda(cudaError_t status, const What&... what) {
  if (status == cudaSuccess) return;
  const char *text = cudaGetErrorString(status), *name = cudaGetErrorName(status);
  fail("CUDA: cannot ", what..., ": ", text, " (", name, ")");
}

}  // namespace llm
