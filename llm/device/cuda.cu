#include "llm/device/cuda.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "llm/base/error.h"
#include "llm/device/check_cuda.h"
#include "llm/device/gemm_plans.h"
#include "llm/device/host_copies.h"

namespace llm {
namespace {

constexpr int kLeastComputeCapability = 80;  // has bf16 on the tensor cores, and cp.async

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

  // Without a driver the call succeeds and gives version 0.
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

int count_cuda_devices() {
  int driver = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // clears the error, so that no later check reports it
  return 0;
}

CudaDevice::CudaDevice(ThreadTeam& threads, int index) : Device(threads), index_(index) {
  const int count = count_cuda_devices();
  if (index < 0 || index >= count)
    fail("CUDA: there is no device ", index, ": ", describe_cuda_devices(), "; the CPU does without");
  make_current();
  cudaDeviceProp p;
  check_cuda(cudaGetDeviceProperties(&p, index), "ask for the properties of device ", index);
  properties_ = {p.name, 10 * p.major + p.minor, p.multiProcessorCount, p.totalGlobalMem, p.sharedMemPerBlockOptin};
  if (properties_.compute_capability < kLeastComputeCapability)
    fail("CUDA: ", p.name, " has compute capability ", p.major, ".", p.minor, ", but the kernels need ",
         kLeastComputeCapability / 10, ".", kLeastComputeCapability % 10, " or more; the CPU does without");
  try {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "make a stream");
    check_cuda(cudaStreamCreateWithFlags(&copy_stream_, cudaStreamNonBlocking), "make a stream");
    counters_ = reinterpret_cast<uint32_t*>(allocate(kCudaCounters * sizeof(uint32_t)));
    if (make_gemm_plans) gemm_plans_ = make_gemm_plans(*this);
  } catch (...) {
    destroy();
    throw;
  }
}

CudaDevice::~CudaDevice() { destroy(); }

// A failure here is ignored: the end of the process releases everything.
void CudaDevice::destroy() {
  if (stream_) cudaStreamSynchronize(stream_);
  if (copy_stream_) cudaStreamSynchronize(copy_stream_);
  gemm_plans_.reset();
  host_copies_.reset();
  if (counters_) cudaFree(counters_);
  if (copy_stream_) cudaStreamDestroy(copy_stream_);
  if (stream_) cudaStreamDestroy(stream_);
}

bool CudaDevice::captures() {
#if defined(LLM_TEST_BED)
  return false;
#else
  return true;
#endif
}

void CudaDevice::make_current() { check_cuda(cudaSetDevice(index_), "use device ", index_); }

size_t CudaDevice::free_bytes() {
  size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "ask how much memory is free");
  return free;
}

std::byte* CudaDevice::allocate(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, std::max<size_t>(1, bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail("CUDA: ", gibibytes(bytes), " of memory are needed, but of the ", gibibytes(properties_.memory_bytes), " of ",
         properties_.name, " only ", gibibytes(free_bytes()), " are free; a smaller batch or memory budget needs less");
  }
  check_cuda(status, "allocate ", bytes, " bytes");
  check_cuda(cudaMemsetAsync(memory, 0, std::max<size_t>(1, bytes), stream_), "clear ", bytes, " bytes");
  return static_cast<std::byte*>(memory);
}

void CudaDevice::release(void* memory, size_t) { check_cuda(cudaFree(memory), "release memory"); }

std::byte* CudaDevice::allocate_on_host(size_t bytes) {
  void* memory = nullptr;
  check_cuda(cudaMallocHost(&memory, std::max<size_t>(1, bytes)), "allocate ", gibibytes(bytes), " of pinned memory");
  std::memset(memory, 0, bytes);
  return static_cast<std::byte*>(memory);
}

void CudaDevice::release_on_host(void* memory, size_t) { check_cuda(cudaFreeHost(memory), "release pinned memory"); }

HostCopies& CudaDevice::host_copies() {
  if (!host_copies_) host_copies_ = make_host_copies(*this);
  return *host_copies_;
}

void CudaDevice::copy_in(void* to, const void* from, size_t bytes) {
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "copy ", bytes, " bytes to the device");
  wait();
}

void CudaDevice::copy_out(void* to, const void* from, size_t bytes) {
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "copy ", bytes,
             " bytes from the device");
  wait();
}

void CudaDevice::copy(void* to, const void* from, size_t bytes) {
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "copy ", bytes,
             " bytes on the device");
}

void CudaDevice::wait() { check_cuda(cudaStreamSynchronize(stream_), "finish what was started on the device"); }

}  // namespace llm
