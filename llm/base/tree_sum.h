// In what order many ranks' values are added: a fixed binary tree over the run's virtual ranks, whoever computes them.
//
// The leaves are numbered [0, leaves). On each level, node 2i and node 2i + 1 are added; a last node without a partner
// goes up a level as it is. Whoever has the leaves [first, last) adds what it can by itself, and hands on the sums of
// whole subtrees: one where it has 2^k leaves from a multiple of 2^k on, otherwise several. So the bits of the sum do
// not depend on how the leaves are dealt out.
#pragma once
#include <cstdint>
#include <vector>

namespace llm {

// A node of the tree: leaves [index 2^level, (index + 1) 2^level), as far as there are so many.
struct Subtree {
  int level = 0;
  int64_t index = 0;
  friend bool operator==(const Subtree&, const Subtree&) = default;
};

// The sums that are not yet added to each other, from left to right.
class TreeStack {
 public:
  explicit TreeStack(int64_t leaves) : leaves_(leaves) {}

  // Puts the sum of a subtree behind the others, which lie to its left. Returns how often the last two sums have to be
  // added to each other then.
  int push(Subtree next) {
    stack_.push_back(lifted(next));
    int additions = 0;
    for (; stack_.size() > 1 && are_siblings(stack_[stack_.size() - 2], stack_.back()); ++additions) {
      stack_.pop_back();
      stack_.back() = lifted({stack_.back().level + 1, stack_.back().index / 2});
    }
    return additions;
  }
  int push_leaf(int64_t leaf) { return push({0, leaf}); }

  const std::vector<Subtree>& sums() const { return stack_; }

 private:
  // The highest node that has the same leaves.
  Subtree lifted(Subtree s) const {
    while (s.index > 0 && s.index % 2 == 0 && (s.index + 1) << s.level >= leaves_) ++s.level, s.index /= 2;
    return s;
  }
  static bool are_siblings(Subtree left, Subtree right) {
    return left.level == right.level && left.index % 2 == 0 && right.index == left.index + 1;
  }

  int64_t leaves_;
  std::vector<Subtree> stack_;
};

// The virtual ranks of a rank: [first, last) of `virtual_ranks`, dealt out as evenly as they can be.
struct VirtualRanks {
  int64_t first, last;
  int64_t count() const { return last - first; }
};
inline VirtualRanks virtual_ranks_of(int rank, int ranks, int64_t virtual_ranks) {
  return {virtual_ranks * rank / ranks, virtual_ranks * (rank + 1) / ranks};
}

// The sums that a rank is left with when all its virtual ranks have been added.
inline std::vector<Subtree> sums_of(VirtualRanks mine, int64_t virtual_ranks) {
  TreeStack stack(virtual_ranks);
  for (int64_t v = mine.first; v < mine.last; ++v) stack.push_leaf(v);
  return stack.sums();
}

}  // namespace llm
