#include "llm/base/threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <fstream>
#include <queue>
#include <thread>

namespace llm {
namespace {

// How often a waiting thread looks before it sleeps. Kernels follow each other within microseconds, so a short spin
// saves a futex call; a longer spin would take a core from the other runs of a sweep. Where there are more threads than
// cores, threads must not spin at all.
constexpr int kSpins = 4000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

template <class T, class Ready>
void wait_until(std::atomic<T>& value, bool spin, Ready ready) {
  if (spin)
    for (int i = 0; i < kSpins; ++i) {
      if (ready(value.load(std::memory_order_acquire))) return;
      pause();
    }
  for (T seen; !ready(seen = value.load(std::memory_order_acquire));) value.wait(seen, std::memory_order_acquire);
}

}  // namespace

int available_threads() {
  cpu_set_t set;
  int count = 1;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = std::max(1, CPU_COUNT(&set));
  // A container may be given less CPU time than the CPUs that it sees (cgroup v2: "quota period" or "max period").
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (file >> quota >> period && quota > 0 && period > 0)
    count = std::min(count, std::max(1, static_cast<int>(std::ceil(quota / period))));
  return count;
}

// All but the caller, and what they share with it.
class ThreadTeam::Workers {
 public:
  Workers(int size, bool spins)
      : size_(size), spins_(spins), shares_(std::make_unique<Share[]>(static_cast<size_t>(size))) {
    for (int rank = 1; rank < size_; ++rank) threads_.emplace_back([this, rank] { work(rank); });
  }
  ~Workers() {
    stop_.store(true, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  void dispatch(Function function, void* context) {
    function_ = function;
    context_ = context;
    running_.store(size_ - 1, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    function(context, 0);
    wait_until(running_, spins_, [](int n) { return n == 0; });
  }

  void deal_out(int64_t count, ItemFunction function, void* context) {
    const auto share_begin = [&](int rank) { return count * rank / size_; };
    for (int rank = 0; rank < size_; ++rank)
      shares_[static_cast<size_t>(rank)].next.store(share_begin(rank), std::memory_order_relaxed);
    const auto take_items = [&](int rank) {
      for (int i = 0; i < size_; ++i) {
        const int from = (rank + i) % size_;
        std::atomic<int64_t>& next = shares_[static_cast<size_t>(from)].next;
        const int64_t end = share_begin(from + 1);
        if (next.load(std::memory_order_relaxed) >= end) continue;
        for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < end;) function(context, item, rank);
      }
    };
    dispatch([](void* take, int rank) { (*static_cast<decltype(take_items)*>(take))(rank); }, address(take_items));
  }

 private:
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};  // the first item of the share that no thread has begun
  };

  void work(int rank) {
    for (uint32_t seen = 0;; ++seen) {
      wait_until(generation_, spins_, [seen](uint32_t g) { return g != seen; });
      if (stop_.load(std::memory_order_relaxed)) return;
      function_(context_, rank);
      if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
    }
  }

  int size_;
  bool spins_;
  std::unique_ptr<Share[]> shares_;
  Function function_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> running_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

ThreadTeam::ThreadTeam(int threads, int teams)
    : size_(threads > 0 ? threads : std::max(1, available_threads() / teams)),
      spins_(size_ * teams <= available_threads()),
      workers_(size_ > 1 ? std::make_unique<Workers>(size_, spins_) : nullptr) {}

ThreadTeam::ThreadTeam(int threads, Rehearsal& rehearsal) : size_(threads), rehearsal_(&rehearsal) {}

ThreadTeam::~ThreadTeam() = default;

void ThreadTeam::dispatch(Function function, void* context) {
  if (workers_) return workers_->dispatch(function, context);
  for (int rank = 0; rank < size_; ++rank) function(context, rank);
}

void ThreadTeam::deal_out(int64_t count, ItemFunction function, void* context) {
  if (workers_ && count > 1) return workers_->deal_out(count, function, context);
  if (rehearsal_ && count > 1) return rehearse(count, function, context);
  for (int64_t item = 0; item < count; ++item) function(context, item, 0);
}

void ThreadTeam::rehearse(int64_t count, ItemFunction function, void* context) {
  using Clock = std::chrono::steady_clock;
  std::priority_queue<double, std::vector<double>, std::greater<>> free;  // when each thread becomes free
  for (int rank = 0; rank < size_; ++rank) free.push(0);
  double end = 0;
  for (int64_t item = 0; item < count; ++item) {
    const auto begin = Clock::now();
    function(context, item, 0);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    const double done = free.top() + seconds;
    free.pop(), free.push(done);
    rehearsal_->busy += seconds;
    end = std::max(end, done);
  }
  rehearsal_->calls += 1;
  rehearsal_->longest += end;
}

size_t ThreadTeam::array_of(int64_t block) const {
  return static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), block) - ends_.begin());
}

}  // namespace llm
