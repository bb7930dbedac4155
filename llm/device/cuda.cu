#include "llm/device/cuda.h"

#include <cuda_runtime.h>

#include <cstdio>

#include "llm/base/error.h"

namespace llm {
namespace {

// CUDA writes a version as 1000 * major + 10 * minor.
std::string version_text(int version) { return concat(version / 1000, ".", version % 1000 / 10); }

std::string gibibytes(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f GiB", static_cast<double>(bytes) / (1 << 30));
  return text;
}

std::string reason(cudaError_t status) {
  return concat(cudaGetErrorString(status), " (", cudaGetErrorName(status), ")");
}

}  // namespace

std::string describe_cuda_devices() {
  int runtime = 0;
  if (const cudaError_t status = cudaRuntimeGetVersion(&runtime); status != cudaSuccess)
    return concat("the runtime library does not answer: ", reason(status));
  const std::string built = "runtime " + version_text(runtime);

  // Without a driver the call succeeds and the version is 0.
  int driver = 0;
  if (const cudaError_t status = cudaDriverGetVersion(&driver); status != cudaSuccess)
    return concat(built, "; the driver does not tell its version: ", reason(status));
  if (driver == 0) return built + "; no NVIDIA driver was found on this machine (libcuda.so.1)";
  const std::string versions = concat(built, ", driver for CUDA ", version_text(driver));

  int count = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess)
    return concat(versions, "; no device can be used: ", reason(status));
  if (count == 0) return versions + "; no device is visible (CUDA_VISIBLE_DEVICES may hide them)";

  std::string text = versions;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties;
    if (const cudaError_t status = cudaGetDeviceProperties(&properties, device); status != cudaSuccess) {
      text += concat("; device ", device, ": cannot be asked: ", reason(status));
      continue;
    }
    text += concat("; device ", device, ": ", properties.name, ", compute capability ", properties.major, ".",
                   properties.minor, ", ", properties.multiProcessorCount, " multiprocessors, ",
                   gibibytes(properties.totalGlobalMem));
  }
  return text;
}

}  // namespace llm
