#include "llm/device/host_copies.h"

#include <cuda_runtime.h>

#include <map>

#include "llm/device/check_cuda.h"
#include "llm/device/cuda.h"
#include "llm/device/cuda_event.h"

namespace llm {
namespace {

class CudaHostCopies final : public HostCopies {
 public:
  explicit CudaHostCopies(CudaDevice& device) : device_(device) {
    for (cudaStream_t& stream : streams_)
      check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
  }
  ~CudaHostCopies() override {
    for (const cudaStream_t stream : streams_) cudaStreamSynchronize(stream), cudaStreamDestroy(stream);
  }

  // A captured walk has both ends: the stream of copies forks from that of kernels here, and joins it in wait().
  void begin(Direction direction) override {
    to_host_ = direction == Direction::to_host;
    ready_.record(device_.stream());
    ready_.hold_back(stream());
  }
  void add(void* to, const void* from, size_t bytes) override {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream()), "copy ", bytes, " bytes beside kernels");
  }
  void end(int transfer) override { done_[transfer].record(stream()); }
  void wait(int transfer) override { done_[transfer].hold_back(device_.stream()); }

 private:
  cudaStream_t stream() const { return streams_[to_host_ ? 1 : 0]; }

  CudaDevice& device_;
  cudaStream_t streams_[2] = {};  // from the host, to the host
  CudaEvent ready_;
  std::map<int, CudaEvent> done_;  // by transfer
  bool to_host_ = false;
};

}  // namespace

std::unique_ptr<HostCopies> make_host_copies(CudaDevice& device) { return std::make_unique<CudaHostCopies>(device); }

}  // namespace llm
