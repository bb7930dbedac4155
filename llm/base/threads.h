// One persistent team of threads for the whole program. The caller is rank 0 and works too.
//
// Results must not depend on the number of threads: split the outputs among the threads, never a sum. Where a sum runs
// over tokens, cut it into blocks whose number does not depend on the team and add the blocks' results in order.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace llm {

class ThreadTeam {
 public:
  // threads = 0: as many as this process may run on.
  explicit ThreadTeam(int threads = 0);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return size_; }

  // Calls work(rank) once on every thread and returns when all are done. Not reentrant. `work` must not throw.
  template <class Work>
  void run(Work&& work) {
    using W = std::remove_reference_t<Work>;
    dispatch([](void* context, int rank) { (*static_cast<W*>(context))(rank); },
             const_cast<void*>(static_cast<const void*>(&work)));
  }

  // Waits inside run() until every thread of the team is here.
  void barrier();

  // Calls work(begin, end) on blocks of [0, n) of at most `grain` items; threads take blocks as they become free.
  // Block boundaries are multiples of `grain`, whatever the number of threads.
  template <class Work>
  void for_blocks(int64_t n, int64_t grain, Work&& work) {
    if (n <= 0) return;
    if (size_ == 1 || n <= grain) {
      for (int64_t b = 0; b < n; b += grain) work(b, std::min(n, b + grain));
      return;
    }
    std::atomic<int64_t> next{0};
    run([&](int) {
      for (int64_t b; (b = next.fetch_add(grain, std::memory_order_relaxed)) < n;) work(b, std::min(n, b + grain));
    });
  }

 private:
  using Function = void (*)(void*, int);
  void dispatch(Function function, void* context);
  void worker(int rank);

  int size_;
  Function function_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> running_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> barrier_generation_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

// How many threads this process may run on (its affinity mask and cgroup quota, not the machine's count).
int available_threads();

}  // namespace llm
