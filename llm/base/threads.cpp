#include "llm/base/threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <fstream>
#include <queue>
#include <thread>

#include "llm/base/run_delay.h"

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

// `holds_core`: whether the thread that is waited for cannot run while this one spins.
template <class T, class Ready, class HoldsCore>
void wait_until(std::atomic<T>& value, bool spin, Ready ready, HoldsCore holds_core) {
  constexpr int kLooks = 32;
  if (spin)
    for (int i = 0; i < kSpins; ++i) {
      if (ready(value.load(std::memory_order_acquire))) return;
      if (i % kLooks == kLooks - 1 && holds_core()) break;
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
    sched_getaffinity(0, sizeof allowed_, &allowed_);
    roster_.store({size_, 0});
    for (int rank = 1; rank < size_; ++rank) threads_.emplace_back([this, rank] { work(rank); });
  }
  ~Workers() {
    stop_.store(true, std::memory_order_relaxed);
    call_in(size_);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  // On all threads.
  void dispatch(Function function, void* context) {
    call_in(size_);
    call(function, context);
  }

  // How many threads take part from the next call on, the caller among them.
  int choose_active() {
    if (!spins_) return active_;
    using namespace std::chrono_literals;
    const Clock::time_point now = Clock::now();
    const bool is_starved = delay_.exceeds(starved_share(), now) | is_starved_.load(std::memory_order_relaxed);
    if (is_starved && active_ > 1) {
      rest_ = now - called_in_ < 4 * RunDelay::kWindow ? std::min<Clock::duration>(2 * rest_, 8s) : 1s;
      call_in(active_ - 1);
      rests_until_ = now + rest_;
    } else if (active_ < size_ && now > rests_until_) {
      call_in(active_ + 1);
      called_in_ = now, rests_until_ = now + rest_;
    }
    return active_;
  }

  // On the threads that do not rest, of which there are several.
  void deal_out(int64_t count, ItemFunction function, void* context) {
    const int active = active_;
    const auto share_begin = [&](int rank) { return count * rank / active; };
    for (int rank = 0; rank < active; ++rank)
      shares_[static_cast<size_t>(rank)].next.store(share_begin(rank), std::memory_order_relaxed);
    const auto take_items = [&](int rank) {
      for (int i = 0; i < active; ++i) {
        const int from = (rank + i) % active;
        std::atomic<int64_t>& next = shares_[static_cast<size_t>(from)].next;
        const int64_t end = share_begin(from + 1);
        if (next.load(std::memory_order_relaxed) >= end) continue;
        for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < end;) function(context, item, rank);
      }
    };
    call([](void* take, int rank) { (*static_cast<decltype(take_items)*>(take))(rank); }, address(take_items));
  }

 private:
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};  // the first item of the share that no thread has begun
    std::atomic<int> core{-1};     // where the thread was when it began its last call
  };

  // Calls function(context, rank) on the active threads.
  void call(Function function, void* context) {
    function_ = function;
    context_ = context;
    running_.store(active_ - 1, std::memory_order_relaxed);
    if (spins_) part_from_workers();
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    function(context, 0);
    const auto holds_core = [this] {
      for (int rank = 1; rank < active_; ++rank)
        if (shares_core(rank)) return true;
      return false;
    };
    wait_until(
        running_, spins_, [](int n) { return n == 0; }, holds_core);
  }

  void work(int rank) {
    int calls_until_move = 0;
    RunDelay delay;
    for (uint32_t seen = 0;; ++seen) {
      for (;;) {
        wait_until(
            generation_, spins_, [seen](uint32_t g) { return g != seen; }, [this] { return shares_core(0); });
        Roster roster = roster_.load(std::memory_order_acquire);
        const auto missed = static_cast<int32_t>(roster.first - 1 - seen);  // generations without this thread
        if (rank < roster.active && missed <= 0) break;
        for (; rank >= roster.active; roster = roster_.load(std::memory_order_acquire))
          roster_.wait(roster, std::memory_order_acquire);
        seen = roster.first - 1;
        delay.restart();
      }
      if (stop_.load(std::memory_order_relaxed)) return;
      if (spins_ && --calls_until_move < 0 && shares_core_with_lower(rank)) {
        move_away(rank);
        calls_until_move = 64;
      }
      core_of(rank).store(sched_getcpu(), std::memory_order_relaxed);
      function_(context_, rank);
      if (spins_ && delay.exceeds(starved_share(), Clock::now())) is_starved_.store(true, std::memory_order_relaxed);
      if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
    }
  }

  // Where something else keeps a core busy, the system may leave two threads of a team on one of the other cores, for
  // seconds: each of them then spins while the other cannot run. Such a thread stops spinning, and a worker moves to a
  // core that no thread of the team has.
  std::atomic<int>& core_of(int rank) { return shares_[static_cast<size_t>(rank)].core; }
  bool shares_core(int rank) { return core_of(rank).load(std::memory_order_relaxed) == sched_getcpu(); }
  bool shares_core_with_lower(int rank) {
    for (int lower = 0; lower < rank; ++lower)
      if (shares_core(lower)) return true;
    return false;
  }
  // A team that slept may be woken with the caller on the core that a worker had, where the system would wake the worker.
  void part_from_workers() {
    const int core = sched_getcpu();
    if (core_of(0).exchange(core, std::memory_order_relaxed) == core) return;
    for (int rank = 1; rank < active_; ++rank)
      if (shares_core(rank)) exclude_core(threads_[static_cast<size_t>(rank - 1)].native_handle(), core);
  }
  void exclude_core(pthread_t worker, int core) {
    cpu_set_t others = allowed_;
    CPU_CLR(static_cast<size_t>(core), &others);
    if (CPU_COUNT(&others) > 0) pthread_setaffinity_np(worker, sizeof others, &others);
  }
  void move_away(int rank) {
    cpu_set_t free = allowed_;
    for (int other = 0; other < size_; ++other)
      if (const int core = core_of(other).load(std::memory_order_relaxed); other != rank && core >= 0)
        CPU_CLR(static_cast<size_t>(core), &free);
    // It stays away until it finds itself beside another again: where it might go back, the system would wake it there.
    if (CPU_COUNT(&free) > 0) sched_setaffinity(0, sizeof free, &free);
  }

  // A thread that must share its core with something as important makes all others wait for it in every call, and the
  // team may be slower than without it. So where a thread was kept from running, the last worker rests: for a second,
  // and longer each time that a thread of the larger team is starved again. Nothing else depends on who works.
  struct Roster {
    int active;      // the threads of ranks below take part
    uint32_t first;  // from this generation on
    bool operator==(const Roster&) const = default;
  };
  // With n threads one of which runs for a part of the time only, n - 1 are faster if that part is below (n - 1) / n,
  // and before that, as memory does not serve n threads n times as fast as one.
  double starved_share() const { return std::max(0.15, 1.0 / (active_ + 1)); }
  // From the next call on, threads of ranks below `active` take part.
  void call_in(int active) {
    if (active == active_) return;
    active_ = active;
    is_starved_.store(false, std::memory_order_relaxed);
    delay_.restart();
    roster_.store({active, generation_.load(std::memory_order_relaxed) + 1}, std::memory_order_release);
    roster_.notify_all();
  }

  int size_;
  bool spins_;
  cpu_set_t allowed_;
  std::unique_ptr<Share[]> shares_;
  Function function_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> running_{0};
  std::atomic<bool> stop_{false};
  int active_ = size_;
  std::atomic<Roster> roster_;
  std::atomic<bool> is_starved_{false};
  RunDelay delay_;  // of the caller
  Clock::time_point called_in_{}, rests_until_{};
  Clock::duration rest_{};
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
  if (workers_ && count > 1 && workers_->choose_active() > 1) return workers_->deal_out(count, function, context);
  if (rehearsal_ && count > 1) return rehearse(count, function, context);
  for (int64_t item = 0; item < count; ++item) function(context, item, 0);
}

void ThreadTeam::rehearse(int64_t count, ItemFunction function, void* context) {
  std::priority_queue<double, std::vector<double>, std::greater<>> free;  // when each thread becomes free
  for (int rank = 0; rank < size_; ++rank) free.push(0);
  double end = 0;
  for (int64_t item = 0; item < count; ++item) {
    const auto begin = Clock::now();
    function(context, item, 0);
    const double seconds = seconds_since(begin);
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
