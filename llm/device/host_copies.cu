#include "llm/device/host_copies.h"

#include <cuda_runtime.h>

#include <vector>

#include "llm/device/check_cuda.h"
#include "llm/device/cuda.h"

namespace llm {
namespace {

class CudaHostCopies final : public HostCopies {
 public:
  explicit CudaHostCopies(CudaDevice& device) : device_(device) {
    for (cudaStream_t& stream : streams_)
      check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
    ready_ = new_event();
  }
  ~CudaHostCopies() override {
    for (const cudaStream_t stream : streams_) cudaStreamSynchronize(stream), cudaStreamDestroy(stream);
    for (const cudaEvent_t event : done_)
      if (event) cudaEventDestroy(event);
    cudaEventDestroy(ready_);
  }

  // A captured walk has both ends: the stream of copies forks from that of kernels here, and joins it in wait().
  void begin(Direction direction) override {
    to_host_ = direction == Direction::to_host;
    check_cuda(cudaEventRecord(ready_, device_.stream()), "record an event");
    check_cuda(cudaStreamWaitEvent(stream(), ready_, 0), "let a stream wait");
  }
  void add(void* to, const void* from, size_t bytes) override {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream()), "copy ", bytes, " bytes beside kernels");
  }
  void end(int transfer) override { check_cuda(cudaEventRecord(done(transfer), stream()), "record an event"); }
  void wait(int transfer) override {
    check_cuda(cudaStreamWaitEvent(device_.stream(), done(transfer), 0), "let a stream wait");
  }

 private:
  cudaStream_t stream() const { return streams_[to_host_ ? 1 : 0]; }
  static cudaEvent_t new_event() {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "make an event");
    return event;
  }
  cudaEvent_t done(int transfer) {
    const auto i = static_cast<size_t>(transfer);
    if (done_.size() <= i) done_.resize(i + 1);
    if (!done_[i]) done_[i] = new_event();
    return done_[i];
  }

  CudaDevice& device_;
  cudaStream_t streams_[2] = {};  // from the host, to the host
  cudaEvent_t ready_ = nullptr;
  std::vector<cudaEvent_t> done_;  // by transfer
  bool to_host_ = false;
};

}  // namespace

std::unique_ptr<HostCopies> make_host_copies(CudaDevice& device) { return std::make_unique<CudaHostCopies>(device); }

}  // namespace llm
