// Runs optimizer steps: batches in, one loss and one gradient norm out. A step is handed over to the device, and its
// batches are copied in ahead of time. On a GPU the results of a step are read when the next step is already running,
// so that the GPU never waits for the host; the CPU has finished a step when it has been handed over.
#pragma once
#include <deque>
#include <memory>
#include <optional>

#include "llm/graph/program.h"
#include "llm/model/gpt.h"
#include "llm/text/loader.h"
#include "llm/train/pipeline.h"
#include "llm/train/virtual_ranks.h"

namespace llm {

class StepRunner {
 public:
  struct Tensors {  // of the training graph
    TensorId tokens, targets, loss_weights, loss, gradient_norm, guarded_norm;
    std::vector<TensorId> router_statistics;  // of each layer with experts
  };
  // How evenly a step's tokens were spread over the experts: on this rank, and of several virtual ranks the last one's.
  struct Routers {
    double load = 0;  // of the expert with the most tokens, in units of the mean; the largest of all layers
    double balance = 0, entropy = 0;  // means over tokens and layers (llm/ops/router_rows.h)
  };
  struct Result {
    double loss = 0, gradient_norm = 0, learning_rate = 0;
    bool skipped = false;  // the weights are as they were before the step
    std::optional<Routers> routers = {};
  };

  // `program` is bound to an arena, and so are `sums`. Each virtual rank takes micro_steps x batch samples of a step
  // from the loader, virtual rank 0 the first ones; those of this rank are taken here, one after another. The loss is
  // the mean over the samples of all virtual ranks. `batch`: (B, T) of a micro-step.
  // `pipeline`: where it is not null, it makes the micro-steps, and `program` only the end of a step.
  StepRunner(Program& program, VirtualRankSums& sums, const Tensors& tensors, Loader& loader,
             const DataParallel& parallel, const Shape& batch, Device& device, Pipeline* pipeline = nullptr);

  // How many steps may be started beyond the one whose result take() waits for.
  int ahead() const { return device_.ahead(); }
  // Starts a step (learning rate, step and seed of `state`), which takes the run's samples from `first_sample` on.
  // `times`, if given, gets when the nodes ran.
  void start(StepState state, int64_t first_sample, std::vector<NodeTime>* times = nullptr);
  // The result of the oldest step whose result has not been taken; waits for it.
  Result take();

 private:
  std::optional<Routers> routers(const float* statistics) const;
  void run_micro_step(const StepState& state, int64_t first_sample, Phases phases, int64_t next_sample);
  void prefetch(int64_t first_sample);
  void provide(int64_t first_sample, void* tokens, void* targets, void* weights);
  void run(Phases phases);

  Program& program_;
  VirtualRankSums& sums_;
  Tensors tensors_;
  Loader& loader_;
  DataParallel parallel_;
  int64_t batch_, tokens_;
  float loss_weight_;  // of each token
  Device& device_;
  Pipeline* pipeline_;
  std::vector<NodeTime>* times_ = nullptr;  // of the step that is being started
  std::deque<double> learning_rates_;       // of the steps whose results have not been taken
  int64_t prefetched_ = -1;  // the first sample of the batch that was copied in last and not used; -1: none
  std::unique_ptr<Upload> upload_;
  std::unique_ptr<Download> download_;
};

}  // namespace llm
