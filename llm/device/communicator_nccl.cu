#include "llm/device/communicator_nccl.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "llm/base/error.h"
#include "llm/device/check_cuda.h"

namespace llm {
namespace {

void check_nccl(ncclResult_t status, const char* what) {
  if (status != ncclSuccess) fail("NCCL: ", what, ": ", ncclGetErrorString(status));
}

class NcclRanks : public Communicator {
 public:
  NcclRanks(CudaDevice& device, Communicator& host, bool by_thread)
      : Communicator(host.rank(), host.size()), device_(device) {
    ncclUniqueId id;
    if (rank() == 0) check_nccl(ncclGetUniqueId(&id), "making an id");
    broadcast(host, 0, &id, sizeof id);
    check_nccl(ncclCommInitRank(&ranks_, size(), id, rank()), "joining the ranks");
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream for messages");
    if (by_thread) sender_ = std::thread([this] { hand_over_all(); });
  }
  ~NcclRanks() override {
    // Where this rank ends by an error, nobody is waited for; the others notice.
    const bool aborts = std::uncaught_exceptions() > 0;
    if (aborts) ncclCommAbort(ranks_);
    if (sender_.joinable()) {
      add_job(nullptr, nullptr);
      sender_.join();
    }
    for (const Channel& channel : channels_) {
      if (channel.ready) cudaEventDestroy(channel.ready);
      if (channel.done) cudaEventDestroy(channel.done);
    }
    cudaStreamDestroy(stream_);
    if (!aborts) ncclCommDestroy(ranks_);
  }

 protected:
  // The messages begin when the kernels so far have run, and run beside those that follow. A captured walk has both ends:
  // the stream of messages forks from that of kernels here, and joins it in wait().
  void start(int channel, Exchange& exchange) override {
    Channel& c = channel_of(channel);
    check_cuda(cudaEventRecord(c.ready, device_.stream()), "an event");
    sender_.joinable() ? add_job(&c, &exchange) : hand_over(c, exchange);
  }
  void wait(int channel, Exchange&) override {
    if (sender_.joinable()) wait_for_job(channel);
    ncclResult_t error = ncclSuccess;
    check_nccl(ncclCommGetAsyncError(ranks_, &error), "asking for errors");
    check_nccl(error, "another rank is lost");
    check_cuda(cudaStreamWaitEvent(device_.stream(), channel_of(channel).done, 0), "waiting for messages");
  }

 private:
  struct Channel {
    cudaEvent_t ready = nullptr, done = nullptr;
  };

  void hand_over(const Channel& c, const Exchange& exchange) {
    check_cuda(cudaStreamWaitEvent(stream_, c.ready, 0), "waiting for kernels");
    check_nccl(ncclGroupStart(), "a group of messages");
    for (const Message& m : exchange.sends)
      check_nccl(ncclSend(m.address, m.bytes, ncclChar, m.peer, ranks_, stream_), "sending");
    for (const Message& m : exchange.receives)
      check_nccl(ncclRecv(m.address, m.bytes, ncclChar, m.peer, ranks_, stream_), "receiving");
    check_nccl(ncclGroupEnd(), "a group of messages");
    check_cuda(cudaEventRecord(c.done, stream_), "an event");
  }

  // What the sender's thread does, in order.
  struct Job {
    const Channel* channel;  // null: the end
    const Exchange* exchange;
  };
  void add_job(const Channel* channel, const Exchange* exchange) {
    const std::lock_guard lock(mutex_);
    jobs_.push_back({channel, exchange});
    changed_.notify_all();
  }
  void wait_for_job(int channel) {
    const Channel* const mine = &channel_of(channel);
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      return error_ || std::none_of(jobs_.begin(), jobs_.end(), [&](const Job& job) { return job.channel == mine; });
    });
    if (error_) std::rethrow_exception(error_);
  }
  void hand_over_all() {
    device_.make_current();
    for (;;) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !jobs_.empty(); });
      const Job job = jobs_.front();
      if (!job.channel) return;
      lock.unlock();
      std::exception_ptr error;
      try {
        hand_over(*job.channel, *job.exchange);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error) error_ = error;
      jobs_.pop_front();
      changed_.notify_all();
    }
  }

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
  std::deque<Channel> channels_;  // in a deque they stay where they are
  // Of the sender's thread, where there is one.
  std::thread sender_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  std::exception_ptr error_;
};

}  // namespace

std::unique_ptr<Communicator> open_nccl_ranks(CudaDevice& device, Communicator& host, bool by_thread) {
  return std::make_unique<NcclRanks>(device, host, by_thread);
}

}  // namespace llm
