// Carries out a pipeline's schedule on one rank: runs the passes of its parts of the model over the micro-batches of a
// virtual rank, and passes the residual stream and its gradient on to the stages before and behind. Micro-batches that are
// under way at the same time have a copy each of a part's transient tensors.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "llm/graph/program.h"
#include "llm/model/pipeline_graphs.h"
#include "llm/train/pipeline_schedule.h"

namespace llm {

class Pipeline {
 public:
  // `layout` has the persistent tensors of all graphs of the run. `options.memory_budget` is for all that a rank holds.
  // `ring`: the graphs of ranks that must recompute alike (recompute_alike.h).
  Pipeline(PipelineGraphs& graphs, const PipelineShape& shape, const DataParallel& parallel,
           const PersistentLayout& layout, const Target& target, const CompileOptions& options,
           const std::vector<PipelineGraphs>& ring = {});

  size_t arena_bytes() const { return arena_bytes_; }
  const Compiled& compiled(int chunk) const { return *chunks_[static_cast<size_t>(chunk)].compiled; }
  // `forward` and `backward` carry messages in the two directions; on GPUs these are communicators of their own, since one
  // that waits for a message holds up those behind it. `ranks`: for the exchanges within graphs.
  void bind(const Arena& arena, Communicator* ranks, Communicator* forward, Communicator* backward);

  // Puts tokens, targets and weights of the batch that begins with this sample of the run to these addresses; null: not
  // needed.
  using Provide = std::function<void(int64_t first_sample, void* tokens, void* targets, void* weights)>;
  // The micro-steps of a virtual rank whose first sample is `first_sample`, `batch` samples each.
  void run(StepState state, int64_t first_sample, int64_t batch, const Provide& provide);

  // When the passes of the last run() were made, in seconds of the steady clock; only a CPU has made them by then.
  struct PassTime {
    PipelineAction action;
    double begin, end;
  };
  const std::vector<PassTime>& times() const { return times_; }

 private:
  struct Chunk {
    PipelinePart ids;  // without its graph
    std::shared_ptr<const Compiled> compiled;
    std::vector<std::unique_ptr<Program>> slots;  // micro-batch m runs in number m modulo their number
    int part = 0;
  };
  void pass(const PipelineAction& action, const StepState& state, const Provide& provide);
  int channel(int boundary, bool back, int micro) const;
  void send(Communicator& by, int stage, int channel, Program& program, TensorId id);
  void receive(Communicator& by, int stage, int channel, Program& program, TensorId id);
  void wait_for_sent(int channel);

  PipelineShape shape_;
  Mesh mesh_;
  int run_rank_, stage_;
  std::vector<PipelineAction> actions_;
  std::vector<Chunk> chunks_;
  size_t arena_bytes_ = 0;
  size_t head_gradient_ = MemoryPlan::kNowhere, head_gradient_bytes_ = 0;  // where a tied head's gradient lies
  const Arena* arena_ = nullptr;
  Communicator *forward_ = nullptr, *backward_ = nullptr;
  std::vector<Communicator*> under_way_;  // by channel: who carries what may not have left; null: nothing
  std::vector<PassTime> times_;
};

}  // namespace llm
