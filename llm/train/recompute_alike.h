// Ranks of a ring recompute alike, as what has gone round is made again by all of them or by none. Each compiles the graphs
// of all for that, so that none has to ask.
#pragma once
#include <vector>

#include "llm/graph/passes.h"
#include "llm/model/pipeline_graphs.h"

namespace llm {

// build(builder, parallel) makes the graphs of a rank, `builder` being build_training_graph or build_pipeline_graphs. With
// a memory budget: lets `options` recompute as much as each rank of the ring needs; for a pipeline, returns their graphs.
template <class Build>
std::vector<PipelineGraphs> recompute_alike(CompileOptions& options, const DataParallel& parallel, const Target& target,
                                            Build&& build) {
  std::vector<PipelineGraphs> ring;
  for (const DataParallel& other : options.memory_budget ? parallel.ring() : std::vector<DataParallel>{}) {
    if (parallel.mesh.stage > 1) {
      ring.push_back(build(build_pipeline_graphs, other));
      continue;
    }
    TrainingGraph t = build(build_training_graph, other);
    const std::vector<TensorId> results = {t.loss, t.gradient_norm, t.guarded_norm};
    options.least = compile(std::move(t.graph), results, target, options).recomputation;
  }
  options.only_least = options.least != RecomputeChoice{};
  return ring;
}

}  // namespace llm
