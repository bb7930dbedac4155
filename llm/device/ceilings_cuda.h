// What a GPU can do at most, measured on it, as llm/device/ceilings.h does for the CPU. Plain C++.
#pragma once
#include "llm/base/shape.h"
#include "llm/device/ceilings.h"
#include "llm/device/cuda.h"

namespace llm {

// `gflops`: of cuBLASLt's largest product of `dtype` (accumulated in fp32). Bandwidths as in Ceilings, of arrays far larger than
// the L2 cache; the cached ones are the same, as a step's tensors rarely stay there. A measurement grows until it takes a
// millisecond, so a slow device takes no longer than a fast one.
[[gnu::weak]] Ceilings measure_cuda_ceilings(CudaDevice& device, DType dtype);
[[gnu::weak]] double measure_cuda_peak_gflops(CudaDevice& device, DType dtype);

}  // namespace llm
