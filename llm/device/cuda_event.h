// For .cu files: a CUDA event that its owner destroys.
#pragma once
#include <cuda_runtime.h>

#include <utility>

#include "llm/device/check_cuda.h"

namespace llm {

// A point in a stream's work.
class CudaEvent {
 public:
  explicit CudaEvent(unsigned flags = cudaEventDisableTiming) {
    check_cuda(cudaEventCreateWithFlags(&event_, flags), "make an event");
  }
  ~CudaEvent() {
    if (event_) cudaEventDestroy(event_);
  }
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&&) = delete;

  void record(cudaStream_t stream) { check_cuda(cudaEventRecord(event_, stream), "record an event"); }
  void hold_back(cudaStream_t stream) { check_cuda(cudaStreamWaitEvent(stream, event_, 0), "let a stream wait"); }
  void wait(const char* what) { check_cuda(cudaEventSynchronize(event_), what); }
  double milliseconds_since(const CudaEvent& earlier) const {
    float milliseconds = 0;
    check_cuda(cudaEventElapsedTime(&milliseconds, earlier.event_, event_), "read a measurement");
    return static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace llm
