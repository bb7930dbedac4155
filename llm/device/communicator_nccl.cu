#include "llm/device/communicator_nccl.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <thread>

#include "llm/base/error.h"
#include "llm/device/check_cuda.h"
#include "llm/device/cuda_event.h"

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
    cudaStreamDestroy(stream_);
    if (!aborts) ncclCommDestroy(ranks_);
  }

 protected:
  // The messages begin when the kernels so far have run, and run beside those that follow. A captured walk has both ends:
  // the stream of messages forks from that of kernels here, and joins it in wait().
  void start(int channel, Exchange& exchange) override {
    Channel& c = channels_[channel];
    c.ready.record(device_.stream());
    sender_.joinable() ? add_job(&c, &exchange) : hand_over(c, exchange);
  }
  void wait(int channel, Exchange&) override {
    if (sender_.joinable()) wait_for_job(channel);
    ncclResult_t error = ncclSuccess;
    check_nccl(ncclCommGetAsyncError(ranks_, &error), "asking for errors");
    check_nccl(error, "another rank is lost");
    channels_[channel].done.hold_back(device_.stream());
  }

 private:
  struct Channel {
    CudaEvent ready, done;
  };

  void hand_over(Channel& c, const Exchange& exchange) {
    c.ready.hold_back(stream_);
    check_nccl(ncclGroupStart(), "a group of messages");
    for (const Message& m : exchange.sends)
      check_nccl(ncclSend(m.address, m.bytes, ncclChar, m.peer, ranks_, stream_), "sending");
    for (const Message& m : exchange.receives)
      check_nccl(ncclRecv(m.address, m.bytes, ncclChar, m.peer, ranks_, stream_), "receiving");
    check_nccl(ncclGroupEnd(), "a group of messages");
    c.done.record(stream_);
  }

  // What the sender's thread does, in order.
  struct Job {
    Channel* channel;  // null: the end
    const Exchange* exchange;
  };
  void add_job(Channel* channel, const Exchange* exchange) {
    const std::lock_guard lock(mutex_);
    jobs_.push_back({channel, exchange});
    changed_.notify_all();
  }
  void wait_for_job(int channel) {
    const Channel* const mine = &channels_[channel];
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

  CudaDevice& device_;
  ncclComm_t ranks_ = nullptr;
  cudaStream_t stream_ = nullptr;
  std::map<int, Channel> channels_;  // in a map they stay where they are
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
