// The measured limits of a GPU, as llm/device/ceilings.h has those of the CPU. Plain C++.
#pragma once
#include "llm/base/shape.h"
#include "llm/device/ceilings.h"
#include "llm/device/cuda.h"

namespace llm {

// `gflops` is the highest rate of cuda_gemm() for square products of `dtype`, accumulated in fp32. Bandwidths are as in
// Ceilings, of arrays of up to 512 MiB, so larger than the L2 cache; the cached ones are the same, since a step's
// tensors rarely stay in that cache. Sizes grow until a measurement takes a millisecond, so that a slow device takes no
// longer than a fast one.
[[gnu::weak]] Ceilings measure_cuda_ceilings(CudaDevice& device, DType dtype);
[[gnu::weak]] double measure_cuda_peak_gflops(CudaDevice& device, DType dtype);

}  // namespace llm
