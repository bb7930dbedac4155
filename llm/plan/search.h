// The search for the layout of a run that trains it the fastest on some ranks, or with the least memory.
#pragma once
#include <string>
#include <vector>

#include "llm/plan/rank_memory.h"
#include "llm/plan/step_time.h"

namespace llm {

enum class Objective { time, memory, cost };
template <>
inline constexpr std::array kNames<Objective> = {"time", "memory", "cost"};

struct Plan {
  Layout layout;
  StepTime time;
  RankMemory memory;      // of the stage that needs the most
  size_t budget = 0;      // --memory-budget; 0: nothing is recomputed
  std::string rejection;  // what it needs that there is not; empty: it fits
};

struct Plans {
  std::vector<Plan> best;        // at most as many as were asked for, the best first
  std::vector<Plan> neighbours;  // of the best one: those that differ in one thing, do not fit or are slower
  int64_t tried = 0;             // layouts whose time was predicted
};

// For as many ranks as there are. Throws UsageError where no layout is possible, with the reason of the one that needs the
// least memory, where that is the reason.
Plans search(const Job& job, const Hardware& hardware, int ranks, Objective objective, size_t most,
             bool with_neighbours);

}  // namespace llm
