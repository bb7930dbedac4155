// How tensors are cut among ranks: of each, every rank owns a range of elements, which may be empty. The ranges of one
// tensor follow each other in the order of the ranks. Ops that talk to other ranks carry this as attributes: "rank",
// "ranks", and "bounds", for each tensor the first elements of all ranks and its number of elements. The ranks are those
// of a group: "first" and "stride" say which they are in the run.
#pragma once
#include "llm/graph/graph.h"

namespace llm {

class Pieces {
 public:
  explicit Pieces(const Attributes& a)
      : bounds_(a.list("bounds")),
        rank_(a.integer("rank")),
        ranks_(a.integer("ranks")),
        first_(a.integer("first", 0)),
        stride_(a.integer("stride", 1)) {
    if (ranks_ < 1 || rank_ < 0 || rank_ >= ranks_ || bounds_.size() % static_cast<size_t>(ranks_ + 1))
      fail("rank ", rank_, " of ", ranks_, " with ", bounds_.size(), " bounds of pieces");
  }

  int64_t rank() const { return rank_; }
  int64_t ranks() const { return ranks_; }
  int in_run(int64_t rank) const { return static_cast<int>(first_ + rank * stride_); }
  size_t tensors() const { return bounds_.size() / static_cast<size_t>(ranks_ + 1); }
  int64_t begin(size_t tensor, int64_t rank) const {
    return bounds_[tensor * static_cast<size_t>(ranks_ + 1) + static_cast<size_t>(rank)];
  }
  int64_t count(size_t tensor, int64_t rank) const { return begin(tensor, rank + 1) - begin(tensor, rank); }
  int64_t mine(size_t tensor) const { return count(tensor, rank_); }

  // Where the piece of a tensor begins in a row that holds this rank's pieces of all tensors, each from a multiple of
  // four elements on, and the size of such a row.
  int64_t place(size_t tensor) const {
    int64_t at = 0;
    for (size_t t = 0; t < tensor; ++t) at += (mine(t) + 3) / 4 * 4;
    return at;
  }
  int64_t row() const { return place(tensors()); }

 private:
  std::span<const int64_t> bounds_;
  int64_t rank_, ranks_, first_, stride_;
};

}  // namespace llm
