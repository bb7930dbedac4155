// The memory that a rank of a run allocates: the memory plans of the programs that Trainer makes there, to the byte.
#pragma once
#include <cstddef>

#include "llm/graph/passes.h"
#include "llm/plan/layout.h"

namespace llm {

struct RankMemory {
  size_t parameters = 0, gradients = 0, state = 0;  // on the device; state: the optimizer's, and masters
  size_t activations = 0;                           // and all else that lives for a part of a step
  size_t host = 0;                                  // what lies in the host's memory instead
  RecomputeChoice recomputation;                    // of a budget's
  size_t persistent() const { return parameters + gradients + state; }
  size_t device() const { return persistent() + activations; }
};

// On the first of the ranks that have this stage, of a run that makes no samples. `budget`: as --memory-budget; 0: the
// layout's recomputation in all layers. `evaluates`: the run holds out some data to evaluate on. Throws Error where the budget
// is too small.
RankMemory memory_of(const Job& job, const Layout& layout, int stage, size_t budget = 0, bool evaluates = true);

}  // namespace llm
