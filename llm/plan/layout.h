// What is planned: a run, and the ways in which ranks can share it.
#pragma once
#include <string>
#include <vector>

#include "llm/graph/op.h"
#include "llm/graph/target.h"
#include "llm/model/config.h"
#include "llm/train/options.h"

namespace llm {

// A run, but for how ranks share it.
struct Job {
  ModelConfig model;
  int64_t context = 0;  // tokens of a sequence
  Target target;
  TrainOptions recipe;       // of which the step's nodes depend: the optimizer above all
  int64_t step_samples = 0;  // sequences in a step
};

struct Layout {
  Mesh mesh;
  int zero = 1;
  int64_t batch = 1, grad_accum = 1;  // sequences of a micro-step, micro-steps of a step on a data rank
  Recompute recompute = Recompute::none;
  PipelineKind pipeline = PipelineKind::one_forward_one_backward;
  int chunks = 1;
  ContextExchange exchange = ContextExchange::gather;
  bool offload = false;
  std::vector<int> cuts = {};  // of the layers, where not as `train` cuts them (llm/model/stages.h)

  bool is_pipeline() const { return mesh.stage > 1; }
};

// As Trainer has it on a rank of the run.
DataParallel parallel_of(const Job& job, const Layout& layout, int run_rank);
// The run's recipe with what the layout says.
TrainOptions recipe_of(const Job& job, const Layout& layout);

}  // namespace llm
