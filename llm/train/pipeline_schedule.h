// Schedules of a pipeline: which pass over which micro-batch each stage makes, one after another. A schedule is a table
// that a pure function makes; an interpreter (pipeline.h) carries it out, whichever it is.
//   gpipe        all forward passes, then all backward passes (Huang et al. 2019, arXiv 1811.06965)
//   1f1b         one forward, one backward, as soon as there is something to go back over (Narayanan et al. 2021,
//                arXiv 2104.04473, PipeDream-Flush): as much waiting, fewer micro-batches in memory
//   interleaved  1f1b where each stage has several chunks of layers that lie apart (ibid., section 2.2): less waiting
//   zero-bubble  a backward pass towards the inputs is one thing, one towards the weights another, which can wait (Qi et
//                al. 2024, arXiv 2401.10241, ZB-H1)
// Backward passes go over the micro-batches in their order, so that the sums of gradients are those of one stage.
#pragma once
#include <array>
#include <iosfwd>
#include <vector>

#include "llm/base/names.h"

namespace llm {

enum class PipelineKind { gpipe, one_forward_one_backward, interleaved, zero_bubble };
template <>
inline constexpr std::array kNames<PipelineKind> = {"gpipe", "1f1b", "interleaved", "zero-bubble"};

enum class PipelinePass { forward, backward, weights };
template <>
inline constexpr std::array kNames<PipelinePass> = {"forward", "backward", "weights"};

struct PipelineAction {
  using Pass = PipelinePass;
  Pass pass;
  int chunk;  // of the stage's own; chunk c of stage s is part c * stages + s of the model
  int micro;
  friend bool operator==(const PipelineAction&, const PipelineAction&) = default;
};

struct PipelineShape {
  PipelineKind kind = PipelineKind::one_forward_one_backward;
  int stages = 1, micro_batches = 1;
  int chunks = 1;  // of each stage; more than one where the schedule is interleaved
};

// By stage, what it does in its order. Of zero-bubble, backward passes are those towards the inputs; of the others, both
// halves. Throws UsageError where the schedule is not for this shape.
using PipelineSchedule = std::vector<std::vector<PipelineAction>>;
PipelineSchedule make_schedule(const PipelineShape& shape);

// When each action begins where passes take these times; throws Error where stages wait for each other for ever.
struct PassTimes {
  double forward = 1, backward = 1, weights = 1;  // backward: towards the inputs
};
struct PipelineTimeline {
  std::vector<std::vector<double>> begins;  // by stage and action
  double length = 0;
  double bubble = 0;  // the share of the stages' time in which they wait
  std::vector<int>
      in_flight;  // by stage: the most micro-batches whose activations it keeps at a time, of all its chunks
};
PipelineTimeline simulate(const PipelineShape& shape, const PipelineSchedule& schedule, const PassTimes& times = {});
// The same with times of each stage, of one of its chunks, and `message`, the time from one stage to the next.
PipelineTimeline simulate(const PipelineShape& shape, const PipelineSchedule& schedule,
                          const std::vector<PassTimes>& times, double message);
// The share by the papers' formulas, of passes that take equal times.
double bubble_by_formula(const PipelineShape& shape);
// A row for each stage: digits are forward passes, the same in brackets backward passes, w passes for weights.
void print_schedule(std::ostream& out, const PipelineShape& shape);

}  // namespace llm
