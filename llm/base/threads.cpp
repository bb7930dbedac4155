#include "llm/base/threads.h"

#include <sched.h>

#include <cmath>
#include <fstream>

namespace llm {
namespace {

// Kernels follow each other within microseconds, so a short spin saves the futex call; a longer one would take a core
// from the other runs of a sweep. A team larger than the cores it may use must not spin at all.
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

bool may_spin(int size) {
  static const int cores = available_threads();
  return size <= cores;
}

}  // namespace

int available_threads() {
  cpu_set_t set;
  int count = 1;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = std::max(1, CPU_COUNT(&set));
  // A container may be given fewer CPUs' worth of time than it sees (cgroup v2: "quota period" or "max period").
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (file >> quota >> period && quota > 0 && period > 0)
    count = std::min(count, std::max(1, static_cast<int>(std::ceil(quota / period))));
  return count;
}

ThreadTeam::ThreadTeam(int threads) : size_(threads > 0 ? threads : available_threads()) {
  for (int rank = 1; rank < size_; ++rank) workers_.emplace_back([this, rank] { worker(rank); });
}

ThreadTeam::~ThreadTeam() {
  stop_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (auto& w : workers_) w.join();
}

void ThreadTeam::dispatch(Function function, void* context) {
  if (size_ == 1) return function(context, 0);
  function_ = function;
  context_ = context;
  running_.store(size_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  function(context, 0);
  wait_until(running_, may_spin(size_), [](int n) { return n == 0; });
}

void ThreadTeam::worker(int rank) {
  for (uint32_t seen = 0;; ++seen) {
    wait_until(generation_, may_spin(size_), [seen](uint32_t g) { return g != seen; });
    if (stop_.load(std::memory_order_relaxed)) return;
    function_(context_, rank);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
  }
}

void ThreadTeam::barrier() {
  if (size_ == 1) return;
  const uint32_t generation = barrier_generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    barrier_generation_.fetch_add(1, std::memory_order_release);
    barrier_generation_.notify_all();
  } else {
    wait_until(barrier_generation_, may_spin(size_), [generation](uint32_t g) { return g != generation; });
  }
}

}  // namespace llm
