// The gradients of a rank that takes the part of several virtual ranks, one after another: they are added as different
// ranks' would be (llm/base/tree_sum.h), with one more set of gradients for each sum that waits for its partner.
#pragma once
#include <memory>
#include <vector>

#include "llm/graph/program.h"
#include "llm/model/gpt.h"

namespace llm {

class VirtualRankSums {
 public:
  // Adds the tensors of the waiting sums to the layout. The programs must be bound before a step.
  VirtualRankSums(const TrainingGraph& training, const DataParallel& parallel, PersistentLayout& layout,
                  const Target& target);
  size_t arena_bytes() const;
  void bind(const Arena& arena);

  // Takes the gradients and the loss of the i-th virtual rank of this rank, which is not the last one; the next one's
  // may then be written in their place.
  void add(size_t i) {
    for (Program* program : after_[i]) program->run(Phase::reduce);
  }

 private:
  std::vector<std::unique_ptr<Program>> programs_;
  std::vector<std::vector<Program*>> after_;  // by virtual rank: what runs after its last micro-step
};

}  // namespace llm
