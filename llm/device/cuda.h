// What the CUDA back end says about the machine. Builds without nvcc have this header too, and say so.
#pragma once
#include <string>

namespace llm {

// One line, without its end, to stand after "CUDA: ": the CUDA runtime's and the driver's version and each device's name,
// compute capability and memory; or the one reason why no device can be used (no driver, driver too old, no device).
// Never throws for want of a GPU.
#if LLM_CUDA
std::string describe_cuda_devices();
#else
inline std::string describe_cuda_devices() { return "not built in (this binary was built without nvcc)"; }
#endif

}  // namespace llm
