// A persistent team of threads, one for the whole program or one for each rank of a run. The calling thread is rank 0
// of the team and works, too.
//
// Results must not depend on the number of threads: split the outputs among the threads, never a sum. Where a sum runs
// over tokens, cut it into blocks whose number does not depend on the team, and add the blocks' results in order.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "llm/base/rounding.h"

namespace llm {

// The time that a team would need, estimated from the time of each item on one thread: the items of a call are dealt
// out in order, each to the thread that is free first.
struct Rehearsal {
  int64_t calls = 0;   // of for_items, with more than one item
  double busy = 0;     // seconds spent in the items of those calls
  double longest = 0;  // seconds from the beginning of each call to the end of its last item, summed
};

class ThreadTeam {
 public:
  // `teams`: how many teams of this size share the CPUs that this process may run on. threads = 0: an equal part of
  // those CPUs.
  explicit ThreadTeam(int threads = 0, int teams = 1);
  // A team of one thread that does the work of `threads` threads, cut into the same items, and adds the time that they
  // would need to `rehearsal`.
  ThreadTeam(int threads, Rehearsal& rehearsal);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return size_; }
  // Whether a waiting thread spins before it sleeps: only where all teams together have a core for each thread.
  bool spins() const { return spins_; }

  // Calls work(rank) once on every thread and returns when all are done. Not reentrant. `work` must not throw.
  template <class Work>
  void run(Work&& work) {
    using W = std::remove_reference_t<Work>;
    dispatch([](void* context, int rank) { (*static_cast<W*>(context))(rank); },
             const_cast<void*>(static_cast<const void*>(&work)));
  }

  // Calls work(item, rank) for each item of [0, count). Each thread begins with a share of consecutive items, which in
  // most ops are the tokens that the thread had in the op before, and so are in its cache. A thread that has finished
  // its share takes items of the others.
  template <class Work>
  void for_items(int64_t count, Work&& work) {
    if (rehearsal_ && count > 1) {
      rehearse(count, [&](int64_t item) { work(item, 0); });
    } else if (size_ == 1 || count <= 1) {
      for (int64_t item = 0; item < count; ++item) work(item, 0);
    } else {
      for (int rank = 0; rank < size_; ++rank)
        shares_[rank].next.store(share_begin(count, rank), std::memory_order_relaxed);
      run([&](int rank) {
        for (int i = 0; i < size_; ++i) {
          const int from = (rank + i) % size_;
          std::atomic<int64_t>& next = shares_[from].next;
          const int64_t end = share_begin(count, from + 1);
          if (next.load(std::memory_order_relaxed) >= end) continue;
          for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < end;) work(item, rank);
        }
      });
    }
  }

  // Calls work(begin, end) on blocks of [0, n) of at most `grain` elements. Block boundaries are multiples of `grain`,
  // whatever the number of threads.
  template <class Work>
  void for_blocks(int64_t n, int64_t grain, Work&& work) {
    for_items(ceil_div(n, grain), [&](int64_t block, int) { work(block * grain, std::min(n, (block + 1) * grain)); });
  }

  // for_blocks over several arrays in one call: work(array, block, begin, end), where array i has size_of(i) elements
  // and the blocks are numbered through all arrays. Returns the number of blocks.
  template <class SizeOf, class Work>
  int64_t for_blocks_of(size_t arrays, SizeOf&& size_of, int64_t grain, Work&& work) {
    ends_.clear();
    int64_t blocks = 0;
    for (size_t i = 0; i < arrays; ++i) ends_.push_back(blocks += ceil_div(size_of(i), grain));
    for_items(blocks, [&](int64_t block, int) {
      const auto i = static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), block) - ends_.begin());
      const int64_t begin = (block - (i ? ends_[i - 1] : 0)) * grain;
      work(i, block, begin, std::min(int64_t{size_of(i)}, begin + grain));
    });
    return blocks;
  }

 private:
  using Function = void (*)(void*, int);
  void dispatch(Function function, void* context);
  void rehearse(int64_t count, const std::function<void(int64_t)>& work);
  void worker(int rank);
  int64_t share_begin(int64_t count, int rank) const { return count * rank / size_; }

  struct alignas(64) Share {
    std::atomic<int64_t> next{0};  // the first item of the share that no thread has begun
  };

  int size_;
  bool spins_ = false;
  std::unique_ptr<Share[]> shares_;
  std::vector<int64_t>
      ends_;  // for_blocks_of: the blocks up to the end of each array; a member so that a step allocates nothing
  Rehearsal* rehearsal_ = nullptr;
  Function function_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> running_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

// How many threads this process may run at a time, by its affinity mask and its cgroup's quota (not the machine's
// count).
int available_threads();

}  // namespace llm
