// A persistent team of threads, one for the whole program or one for each rank of a run. The calling thread is rank 0
// of the team and works, too.
//
// Results must not depend on the number of threads: split the outputs among the threads, never a sum. Where a sum runs
// over tokens, cut it into blocks whose number does not depend on the team, and add the blocks' results in order.
#pragma once
#include <cstdint>
#include <memory>
#include <type_traits>
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
    dispatch([](void* context, int rank) { (*static_cast<std::remove_reference_t<Work>*>(context))(rank); },
             address(work));
  }

  // Calls work(item, rank) for each item of [0, count). Each thread begins with a share of consecutive items, which in
  // most ops are the tokens that the thread had in the op before, and so are in its cache. A thread that has finished
  // its share takes items of the others. (The calls go through a pointer, so that the compiler makes one copy of `work`
  // and not one for each way to deal out items.)
  template <class Work>
  void for_items(int64_t count, Work&& work) {
    deal_out(
        count,
        [](void* context, int64_t item, int rank) {
          (*static_cast<std::remove_reference_t<Work>*>(context))(item, rank);
        },
        address(work));
  }

  // Calls work(begin, end) on blocks of [0, n) of at most `grain` elements. Block boundaries are multiples of `grain`,
  // whatever the number of threads.
  template <class Work>
  void for_blocks(int64_t n, int64_t grain, Work&& work) {
    for_items(ceil_div(n, grain), [&](int64_t block, int) {
      const int64_t begin = block * grain;
      work(begin, n - begin < grain ? n : begin + grain);
    });
  }

  // for_blocks over several arrays in one call: work(array, block, begin, end), where array i has size_of(i) elements
  // and the blocks are numbered through all arrays. Returns the number of blocks.
  template <class SizeOf, class Work>
  int64_t for_blocks_of(size_t arrays, SizeOf&& size_of, int64_t grain, Work&& work) {
    ends_.clear();
    int64_t blocks = 0;
    for (size_t i = 0; i < arrays; ++i) ends_.push_back(blocks += ceil_div(size_of(i), grain));
    for_items(blocks, [&](int64_t block, int) {
      const size_t i = array_of(block);
      const int64_t begin = (block - (i ? ends_[i - 1] : 0)) * grain, size = size_of(i);
      work(i, block, begin, size - begin < grain ? size : begin + grain);
    });
    return blocks;
  }

 private:
  using Function = void (*)(void* context, int rank);
  using ItemFunction = void (*)(void* context, int64_t item, int rank);
  template <class Work>
  static void* address(Work& work) {
    return const_cast<void*>(static_cast<const void*>(&work));
  }
  void dispatch(Function function, void* context);
  void deal_out(int64_t count, ItemFunction function, void* context);
  void rehearse(int64_t count, ItemFunction function, void* context);
  size_t array_of(int64_t block) const;  // the array that the block of for_blocks_of is in

  int size_;
  bool spins_ = false;
  // for_blocks_of: the blocks up to the end of each array; a member so that a step allocates nothing
  std::vector<int64_t> ends_;
  Rehearsal* rehearsal_ = nullptr;
  class Workers;
  std::unique_ptr<Workers> workers_;  // null: the caller works alone
};

// How many threads this process may run at a time, by its affinity mask and its cgroup's quota (not the machine's
// count).
int available_threads();

}  // namespace llm
