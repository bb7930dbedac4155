// In which order ordered_sum takes the ranks' sums.
#pragma once
#include "llm/graph/graph.h"

namespace llm {

// How many sums it can add, how many of them may be this rank's own, and how many may be waiting for their partner: a
// tree over 64 needs seven.
inline constexpr int kMostSums = 256, kMostOwnSums = 6, kMostOpenSums = 10;

struct OrderedSums {
  int source[kMostSums];  // row number `source` of what was received, or own sum number -1 - `source`
  int count = 0;

  explicit OrderedSums(const Attributes& a) {
    const auto sums = a.list("sums");
    const int64_t rank = a.integer("rank");
    int received = 0;
    for (size_t r = 0; r < sums.size(); ++r)
      for (int64_t s = 0; s < sums[r]; ++s)
        source[count++] = static_cast<int64_t>(r) == rank ? -1 - static_cast<int>(s) : received++;
  }
};

}  // namespace llm
