// Several ranks of one command: threads of this process (--ranks), or processes that mpirun or srun has started.
#pragma once
#include <functional>
#include <string>

#include "llm/cli/option.h"
#include "llm/device/communicator.h"

namespace llm {

// A rank, as its part of the command sees it.
struct RankPlace {
  Communicator* ranks = nullptr;  // null: there is one rank
  int local = 0, locals = 1;      // it is number `local` of the `locals` ranks on this host

  int rank() const { return ranks ? ranks->rank() : 0; }
  int count() const { return ranks ? ranks->size() : 1; }
  bool is_first() const { return rank() == 0; }  // the one that speaks, and that writes what is one file
};

// Calls work(place) on each rank; `ranks`: how many the command line asks for, 0: one, or as many as were started.
// Returns when all are done. A failure of one rank ends all of them.
void run_on_ranks(int ranks, const std::function<void(const RankPlace&)>& work);

// What a rank does by itself, rank 0 before the others, who may rely on what it has done. Where one fails, all end, and
// the first of those that failed says why.
void in_turn(const RankPlace& place, const std::function<void()>& work);

// Throws UsageError unless all ranks say the same text, which describes what they are about to do, and are the same
// binary.
void check_alike(const RankPlace& place, const std::string& text);

// The sum of what all ranks say.
int64_t sum_over_ranks(const RankPlace& place, int64_t mine);

}  // namespace llm
