// The graphs of a rank in a pipeline: of each part of the model that it has, forward and backward pass of a micro-batch; and
// of a step's end, in which its gradients are summed over the ranks with the same parts, and its parameters stepped.
#pragma once
#include <vector>

#include "llm/model/gpt.h"
#include "llm/model/stages.h"

namespace llm {

// Inputs as in TrainingGraph, and the residual stream and its gradient on their way between parts; kNone: this part has
// none of them. Where the backward pass is split, the nodes for weights have the phase `weights`.
struct PipelinePart {
  Graph graph;
  TensorId tokens = kNone, targets = kNone, loss_weights = kNone;
  TensorId received = kNone, sent_gradient = kNone;  // inputs
  TensorId sent = kNone, received_gradient = kNone;  // results
  std::vector<TensorId> results() const;
};

struct PipelineGraphs {
  std::vector<PipelinePart> parts;  // chunk by chunk
  TrainingGraph step;               // without inputs and losses
  // A tied head's gradient of the last stage, and where the first stage takes it in; kNone: not here.
  TensorId head_gradient = kNone;
};
PipelineGraphs build_pipeline_graphs(const ModelConfig& config, int64_t batch, int64_t tokens,
                                     const OptimizerOptions& options, DType dtype, const RecipeOptions& recipe,
                                     const DataParallel& parallel);

// The parameters that a rank steps: those of its parts.
std::vector<Parameter> table_of_stage(const std::vector<Parameter>& table, const DataParallel& parallel);

}  // namespace llm
