// The team of threads: every item is done once, by whichever thread; and what a rehearsal counts.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <memory>
#include <numeric>
#include <set>
#include <vector>

#include "llm/base/threads.h"

namespace llm {
namespace {

// Takes time in proportion to `rounds`: with some long items threads finish their share early and help others.
void work_for(int64_t rounds) {
  std::atomic<int64_t> sum{0};
  for (int64_t i = 0; i < rounds; ++i) sum.fetch_add(i, std::memory_order_relaxed);
}

TEST_CASE("threads: every item is done once, by a rank of the team") {
  for (const int threads : {1, 2, 3, 7}) {
    CAPTURE(threads);
    ThreadTeam team(threads);
    for (const int64_t count : {0, 1, 2, 5, 6, 7, 8, 100}) {
      CAPTURE(count);
      std::vector<std::atomic<int>> done(static_cast<size_t>(count));
      std::atomic<int> strangers{0};
      team.for_items(count, [&](int64_t item, int rank) {
        work_for(item % 5 == 0 ? 20000 : 10);
        done[static_cast<size_t>(item)].fetch_add(1);
        if (rank < 0 || rank >= threads) strangers.fetch_add(1);
      });
      for (auto& times : done) CHECK(times.load() == 1);
      CHECK(strangers.load() == 0);
    }
  }
}

TEST_CASE("threads: blocks of several arrays meet every element once") {
  const std::vector<int64_t> sizes = {0, 10, 1, 0, 4, 33, 0};
  for (const int threads : {1, 3}) {
    CAPTURE(threads);
    ThreadTeam team(threads);
    std::vector<std::vector<int>> done(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) done[i].assign(static_cast<size_t>(sizes[i]), 0);
    std::vector<std::atomic<int>> blocks(3 + 1 + 1 + 9);  // blocks of four elements
    team.for_blocks_of(
        sizes.size(), [&](size_t i) { return sizes[i]; }, 4,
        [&](size_t i, int64_t block, int64_t begin, int64_t end) {
          blocks[static_cast<size_t>(block)].fetch_add(1);
          CHECK(begin % 4 == 0);
          CHECK(end - begin <= 4);
          for (int64_t at = begin; at < end; ++at) done[i][static_cast<size_t>(at)] += 1;
        });
    for (const auto& array : done)
      for (const int times : array) CHECK(times == 1);
    for (auto& times : blocks) CHECK(times.load() == 1);
    team.for_blocks_of(
        0, [](size_t) { return 1; }, 4, [](size_t, int64_t, int64_t, int64_t) { CHECK(false); });
  }
}

TEST_CASE("threads: a rehearsal does all the work and counts what a team would need") {
  Rehearsal rehearsal;
  ThreadTeam team(4, rehearsal);
  CHECK(team.size() == 4);
  std::vector<int> done(10, 0);
  const auto work = [&](int64_t item, int rank) {
    work_for(1000);
    CHECK(rank == 0);
    done[static_cast<size_t>(item)] += 1;
  };
  team.for_items(10, work);
  CHECK(std::accumulate(done.begin(), done.end(), 0) == 10);
  CHECK(rehearsal.calls == 1);
  // Four threads need at least a fourth of the time that one thread needs, and less than all of it.
  CHECK(rehearsal.longest >= 0.999 * rehearsal.busy / 4);
  CHECK(rehearsal.longest < rehearsal.busy);
  // A single item needs no team.
  const double before = rehearsal.busy;
  team.for_items(1, work);
  CHECK(rehearsal.calls == 1);
  CHECK(rehearsal.busy == before);
  std::vector<int> ranks;
  team.run([&](int rank) { ranks.push_back(rank); });
  CHECK(ranks == std::vector<int>{0, 1, 2, 3});
}

TEST_CASE("threads: whoever rests beside busy processes, each item is done once, and each thread is called") {
  const int cores = available_threads();
  std::vector<pid_t> busy;
  for (int i = 0; i < 2 * cores; ++i) {
    const pid_t child = ::fork();
    if (child > 0) busy.push_back(child);
    if (child == 0)
      for (volatile unsigned n = 0;;) n = n + 1;
  }
  int64_t calls = 0, wrong = 0;
  std::set<int> most_ranks, least_ranks;
  {
    ThreadTeam team(cores);
    std::vector<std::atomic<int>> done(40), rank_of(40), called(static_cast<size_t>(cores));
    using Clock = std::chrono::steady_clock;
    // A worker rests after 50 ms, and works again after a second.
    for (const auto end = Clock::now() + std::chrono::milliseconds(1500); Clock::now() < end; ++calls) {
      for (auto& times : done) times = 0;
      team.for_items(40, [&](int64_t item, int rank) {
        work_for(200);
        done[static_cast<size_t>(item)] += 1;
        rank_of[static_cast<size_t>(item)] = rank;
      });
      std::set<int> ranks;
      for (size_t i = 0; i < done.size(); ++i) wrong += done[i] != 1, ranks.insert(rank_of[i]);
      if (ranks.size() > most_ranks.size()) most_ranks = ranks;
      if (calls == 0 || ranks.size() < least_ranks.size()) least_ranks = ranks;
      if (calls % 100 != 99) continue;
      for (auto& times : called) times = 0;
      team.run([&](int rank) { called[static_cast<size_t>(rank)] += 1; });
      for (auto& times : called) wrong += times != 1;
    }
  }
  for (const pid_t child : busy) ::kill(child, SIGKILL), ::waitpid(child, nullptr, 0);
  CHECK(calls > 0);
  CHECK(wrong == 0);
  MESSAGE("calls: ", calls, "; threads that took items: ", least_ranks.size(), " to ", most_ranks.size());
}

TEST_CASE("threads: teams that share the machine divide it, and spin only where each thread has a core") {
  const int cores = available_threads();
  CHECK(ThreadTeam(cores).spins());
  CHECK_FALSE(ThreadTeam(cores + 1).spins());
  CHECK_FALSE(ThreadTeam(cores, 2).spins());
  CHECK(ThreadTeam(0, 2).size() == std::max(1, cores / 2));
  CHECK(ThreadTeam(0, 2).spins() == (cores > 1));
  CHECK(ThreadTeam(0, cores + 1).size() == 1);
}

}  // namespace
}  // namespace llm
