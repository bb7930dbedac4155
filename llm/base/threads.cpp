#include "llm/base/threads.h"

#include <sched.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <queue>

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

ThreadTeam::ThreadTeam(int threads, int teams)
    : size_(threads > 0 ? threads : std::max(1, available_threads() / teams)),
      spins_(size_ * teams <= available_threads()),
      shares_(std::make_unique<Share[]>(static_cast<size_t>(size_))) {
  for (int rank = 1; rank < size_; ++rank) workers_.emplace_back([this, rank] { worker(rank); });
}

ThreadTeam::ThreadTeam(int threads, Rehearsal& rehearsal) : size_(threads), rehearsal_(&rehearsal) {}

ThreadTeam::~ThreadTeam() {
  stop_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (auto& w : workers_) w.join();
}

void ThreadTeam::dispatch(Function function, void* context) {
  if (size_ == 1) return function(context, 0);
  if (rehearsal_) {
    for (int rank = 0; rank < size_; ++rank) function(context, rank);
    return;
  }
  function_ = function;
  context_ = context;
  running_.store(size_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  function(context, 0);
  wait_until(running_, spins_, [](int n) { return n == 0; });
}

void ThreadTeam::rehearse(int64_t count, const std::function<void(int64_t)>& work) {
  using Clock = std::chrono::steady_clock;
  std::priority_queue<double, std::vector<double>, std::greater<>> free;  // when each thread becomes free
  for (int rank = 0; rank < size_; ++rank) free.push(0);
  double end = 0;
  for (int64_t item = 0; item < count; ++item) {
    const auto begin = Clock::now();
    work(item);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    const double done = free.top() + seconds;
    free.pop(), free.push(done);
    rehearsal_->busy += seconds;
    end = std::max(end, done);
  }
  rehearsal_->calls += 1;
  rehearsal_->longest += end;
}

void ThreadTeam::worker(int rank) {
  for (uint32_t seen = 0;; ++seen) {
    wait_until(generation_, spins_, [seen](uint32_t g) { return g != seen; });
    if (stop_.load(std::memory_order_relaxed)) return;
    function_(context_, rank);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
  }
}

}  // namespace llm
