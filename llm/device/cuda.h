// One NVIDIA GPU. Plain C++, without CUDA's headers: the parts that need them are compiled by nvcc (or, in the tests, by
// the test bed) and found by the linker. A binary without them has null at these weak names.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

struct CUstream_st;  // what cudaStream_t points to
struct CUevent_st;
struct CUgraphExec_st;

namespace llm {

class GemmPlans;

struct CudaProperties {
  std::string name;
  int compute_capability = 0;  // 10 * major + minor
  int multiprocessors = 0;
  size_t memory_bytes = 0;         // of the device
  size_t shared_memory_bytes = 0;  // that a block may have at the most
};

inline constexpr int64_t kCudaCounters = 1 << 16;

// What the matrix products need beside the plan's arena; 32 MiB is cuBLAS's own choice for the H100.
inline constexpr size_t kGemmWorkspaceBytes = size_t{32} << 20;

// Used by one thread at a time.
class CudaDevice {
 public:
  // Throws Error naming the reason when the device cannot be used. The calling thread's work goes to it from here on.
  [[gnu::weak]] explicit CudaDevice(int index = 0);
  [[gnu::weak]] ~CudaDevice();
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  [[gnu::weak]] void make_current();  // for the calling thread, where it is not the one that made the device

  const CudaProperties& properties() const { return properties_; }
  CUstream_st* stream() const { return stream_; }              // where everything runs
  CUstream_st* copy_stream() const { return copy_stream_; }    // where batches come in meanwhile
  GemmPlans* gemm_plans() const { return gemm_plans_.get(); }  // null in the test bed: llm/device/gemm_plans.h
  uint32_t* counters() const { return counters_; }             // zeros: simt::arrives_last uses them and clears them

  // Products of fp32 may round their factors to tf32 (10 bits): several times as fast. Off at first.
  bool allow_tf32 = false;

  [[gnu::weak]] void* allocate(size_t bytes);         // throws Error with what is free; the memory holds zeros
  [[gnu::weak]] void release(void* memory);           // waits until nothing runs; null is nothing
  [[gnu::weak]] void* allocate_pinned(size_t bytes);  // the host's memory, from which copies run in the background
  [[gnu::weak]] void release_pinned(void* memory);
  [[gnu::weak]] size_t free_bytes();  // of the device's memory, by now

  // In the order of the stream; `copy_in` and `copy_out` return when the copy is done.
  [[gnu::weak]] void copy_in(void* device, const void* host, size_t bytes);
  [[gnu::weak]] void copy_out(void* host, const void* device, size_t bytes);
  [[gnu::weak]] void wait();  // until the stream is empty; throws Error for what went wrong on the device

 private:
  [[gnu::weak]] void destroy();

  CudaProperties properties_;
  int index_ = 0;
  CUstream_st *stream_ = nullptr, *copy_stream_ = nullptr;
  uint32_t* counters_ = nullptr;
  std::unique_ptr<GemmPlans> gemm_plans_;
};

// One line, without its end, to stand after "CUDA: ": the CUDA runtime's and the driver's version and each device's name,
// compute capability and memory; or the one reason why no device can be used (no driver, driver too old, no device).
// Never throws for want of a GPU.
[[gnu::weak]] std::string describe_cuda_devices();
// How many devices can be used, 0 where there is none for whatever reason.
[[gnu::weak]] int count_cuda_devices();
// Whether the binary has the CUDA back end. Without it nothing else of this header may be called.
inline bool cuda_is_built_in() { return &count_cuda_devices != nullptr; }

}  // namespace llm
