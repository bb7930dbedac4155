// The predicted time of a training step: the nodes of a block's graph, as often as a rank runs them; the schedule of a
// pipeline; and the end of a step, node by node.
#pragma once
#include <map>
#include <string>

#include "llm/plan/layout.h"
#include "llm/plan/pass_time.h"

namespace llm {

// Seconds of a step, which are its time together: means over the stages of a pipeline.
struct StepTime {
  double compute = 0;
  double exchange = 0;  // what kernels do not hide
  double bubble = 0;    // in which stages wait for each other
  double optimizer = 0;
  double total() const { return compute + exchange + bubble + optimizer; }
};

class StepTimer {
 public:
  StepTimer(const Job& job, const Hardware& hardware) : job_(job), hardware_(hardware) {}
  // `is_stalled`: exchanges of micro-steps take as long as the machine says that they do where they stall.
  StepTime time(const Layout& layout, bool is_stalled = false);

 private:
  // One micro-batch: a block, what is in front of the first and behind the last one.
  struct Passes {
    PassTime forward, backward, weights;  // backward: towards the inputs
  };
  struct Parts {
    Passes block, front, back;
  };
  struct End {
    PassTime reduce, optimizer;
  };
  Parts parts_of(const Layout& layout);
  End end_of(const Layout& layout, int stage);

  Job job_;
  Hardware hardware_;
  std::map<std::string, Parts> parts_;  // by what it depends on
  std::map<std::string, End> ends_;
};

}  // namespace llm
