// Ranks of a run that do something together: those with the numbers first, first + stride, ... in the run.
#pragma once

namespace llm {

struct RankGroup {
  int rank = 0, ranks = 1;  // this rank's place in the group, and how many there are
  int first = 0, stride = 1;
  int in_run(int place) const { return first + place * stride; }
  bool is_alone() const { return ranks == 1; }
};

}  // namespace llm
