// One NVIDIA GPU. Plain C++, without CUDA's headers: nvcc (or, for the tests, the test bed) compiles the parts that
// need those headers. The names are weak: in a binary without these parts they are null.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "llm/device/device.h"

struct CUstream_st;  // what cudaStream_t points to

namespace llm {

class GemmPlans;
class HostCopies;

struct CudaProperties {
  std::string name;
  int compute_capability = 0;  // 10 * major + minor
  int multiprocessors = 0;
  size_t memory_bytes = 0;         // of the device
  size_t shared_memory_bytes = 0;  // the most that a block may have
};

inline constexpr int64_t kCudaCounters = 1 << 16;  // how many counters() there are

// The workspace of cuBLASLt's products, beside the arena; 32 MiB is cuBLAS's own choice for the H100.
inline constexpr size_t kGemmWorkspaceBytes = size_t{32} << 20;

class CudaDevice : public Device {
 public:
  // Makes the device current for the calling thread. Throws Error with the reason when the device cannot be used.
  [[gnu::weak]] explicit CudaDevice(ThreadTeam& threads, int index = 0);
  [[gnu::weak]] ~CudaDevice() override;

  [[gnu::weak]] void make_current();  // for calls from another thread than the one that made the device
  // Whether launches can be captured as a CUDA graph: not in the test bed, which runs each kernel when it is launched.
  [[gnu::weak]] static bool captures();

  const CudaProperties& properties() const { return properties_; }
  CUstream_st* stream() const { return stream_; }              // of all kernels
  CUstream_st* copy_stream() const { return copy_stream_; }    // of copies that run beside kernels
  GemmPlans* gemm_plans() const { return gemm_plans_.get(); }  // null in the test bed: llm/device/gemm_plans.h
  uint32_t* counters() const { return counters_; }             // zeros; simt::arrives_last uses them and clears them
  [[gnu::weak]] HostCopies& host_copies();                     // made at the first call
  [[gnu::weak]] size_t free_bytes();                           // of the device's memory at this time

  // Whether products of fp32 may round their factors to tf32 (10 bits of mantissa), which is several times as fast.
  bool allow_tf32 = false;

  CudaDevice* cuda() override { return this; }
  int ahead() const override { return 1; }
  [[gnu::weak]] std::byte* allocate(size_t bytes) override;         // the error says how much is free
  [[gnu::weak]] void release(void* memory, size_t bytes) override;  // waits until the device is idle
  std::byte* on_host(std::byte*) const override { return nullptr; }
  [[gnu::weak]] std::byte* allocate_on_host(size_t bytes) override;  // pinned
  [[gnu::weak]] void release_on_host(void* memory, size_t bytes) override;
  [[gnu::weak]] void copy_in(void* to, const void* from, size_t bytes) override;
  [[gnu::weak]] void copy_out(void* to, const void* from, size_t bytes) override;
  [[gnu::weak]] void store(void* to, const void* from, size_t bytes) override;
  [[gnu::weak]] void copy(void* to, const void* from, size_t bytes) override;
  [[gnu::weak]] void wait() override;
  [[gnu::weak]] std::unique_ptr<Upload> new_upload(size_t bytes) override;
  [[gnu::weak]] std::unique_ptr<Download> new_download(size_t bytes, bool beside) override;
  [[gnu::weak]] std::unique_ptr<Stopwatch> new_stopwatch(size_t marks) override;
  [[gnu::weak]] std::unique_ptr<Replay> new_replay() override;

 private:
  [[gnu::weak]] void destroy();

  CudaProperties properties_;
  int index_ = 0;
  CUstream_st *stream_ = nullptr, *copy_stream_ = nullptr;
  uint32_t* counters_ = nullptr;
  std::unique_ptr<GemmPlans> gemm_plans_;
  std::unique_ptr<HostCopies> host_copies_;
};

// One line, without a line break, to stand after "CUDA: ": the versions of the CUDA runtime and the driver, and each
// device's name, compute capability and memory; or the reason why no device can be used (no driver, driver too old, no
// device). Does not throw for want of a GPU.
[[gnu::weak]] std::string describe_cuda_devices();
// How many devices can be used; 0 where there is none, for whatever reason.
[[gnu::weak]] int count_cuda_devices();
// Whether the binary has the CUDA back end. If not, nothing else of this header may be called.
inline bool cuda_is_built_in() { return &count_cuda_devices != nullptr; }

}  // namespace llm
