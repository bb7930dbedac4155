#include "llm/device/communicator_nccl.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <exception>

#include "llm/base/error.h"
#include "llm/device/check_cuda.h"

namespace llm {
namespace {

void check_nccl(ncclResult_t status, const char* what) {
  if (status != ncclSuccess) fail("NCCL: ", what, ": ", ncclGetErrorString(status));
}

class NcclRanks : public Communicator {
 public:
  NcclRanks(CudaDevice& device, Communicator& host) : Communicator(host.rank(), host.size()), device_(device) {
    ncclUniqueId id;
    if (rank() == 0) check_nccl(ncclGetUniqueId(&id), "making an id");
    broadcast(host, 0, &id, sizeof id);
    check_nccl(ncclCommInitRank(&ranks_, size(), id, rank()), "joining the ranks");
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream for messages");
  }
  ~NcclRanks() override {
    for (const Channel& channel : channels_) {
      if (channel.ready) cudaEventDestroy(channel.ready);
      if (channel.done) cudaEventDestroy(channel.done);
    }
    cudaStreamDestroy(stream_);
    // Where this rank ends by an error, nobody is waited for; the others notice.
    std::uncaught_exceptions() > 0 ? ncclCommAbort(ranks_) : ncclCommDestroy(ranks_);
  }

 protected:
  // The messages begin when the kernels so far have run, and run beside those that follow. A captured walk has both ends:
  // the stream of messages forks from that of kernels here, and joins it in wait().
  void start(int channel, Exchange& exchange) override {
    Channel& c = channel_of(channel);
    check_cuda(cudaEventRecord(c.ready, device_.stream()), "an event");
    check_cuda(cudaStreamWaitEvent(stream_, c.ready, 0), "waiting for kernels");
    check_nccl(ncclGroupStart(), "a group of messages");
    for (const Message& m : exchange.sends)
      check_nccl(ncclSend(m.address, m.bytes, ncclChar, m.peer, ranks_, stream_), "sending");
    for (const Message& m : exchange.receives)
      check_nccl(ncclRecv(m.address, m.bytes, ncclChar, m.peer, ranks_, stream_), "receiving");
    check_nccl(ncclGroupEnd(), "a group of messages");
    check_cuda(cudaEventRecord(c.done, stream_), "an event");
  }
  void wait(int channel, Exchange&) override {
    ncclResult_t error = ncclSuccess;
    check_nccl(ncclCommGetAsyncError(ranks_, &error), "asking for errors");
    check_nccl(error, "another rank is lost");
    check_cuda(cudaStreamWaitEvent(device_.stream(), channel_of(channel).done, 0), "waiting for messages");
  }

 private:
  struct Channel {
    cudaEvent_t ready = nullptr, done = nullptr;
  };
  Channel& channel_of(int channel) {
    const auto c = static_cast<size_t>(channel);
    if (channels_.size() <= c) channels_.resize(c + 1);
    for (cudaEvent_t* event : {&channels_[c].ready, &channels_[c].done})
      if (!*event) check_cuda(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "an event");
    return channels_[c];
  }

  CudaDevice& device_;
  ncclComm_t ranks_ = nullptr;
  cudaStream_t stream_ = nullptr;
  std::vector<Channel> channels_;
};

}  // namespace

std::unique_ptr<Communicator> open_nccl_ranks(CudaDevice& device, Communicator& host) {
  return std::make_unique<NcclRanks>(device, host);
}

}  // namespace llm
