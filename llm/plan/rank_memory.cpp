#include "llm/plan/rank_memory.h"

#include <algorithm>
#include <set>

#include "llm/infer/evaluate.h"
#include "llm/train/pipeline.h"
#include "llm/train/placement.h"
#include "llm/train/recompute_alike.h"
#include "llm/train/virtual_ranks.h"

namespace llm {
namespace {

size_t evaluation_bytes(const Job& job, const Layout& layout, const DataParallel& parallel,
                        const PersistentLayout& persistent) {
  const TrainOptions recipe = recipe_of(job, layout);
  const Placement placement(parameter_table(job.model, parametrization_of(recipe)), parallel, *recipe.optimizer,
                            job.model.tied_head);
  std::function<void(Graph&)> divide;
  if (parallel.divides_parameters() || !parallel.mesh.is_data_alone())
    divide = [&](Graph& g) { add_block_gathers(g, placement.sliced(), parallel, placement.partition()); };
  const int32_t end_of_text = recipe.document_mask ? 0 : -1;
  return Evaluator(job.model, layout.batch, job.context, persistent, job.target, end_of_text, divide).arena_bytes();
}

}  // namespace

RankMemory memory_of(const Job& job, const Layout& layout, int stage, size_t budget, bool evaluates) {
  const DataParallel parallel = parallel_of(job, layout, layout.mesh.rank_of({.stage = stage}));
  const TrainOptions recipe = recipe_of(job, layout);
  const auto build = [&](auto builder, const DataParallel& of) {
    return builder(job.model, layout.batch, job.context, optimizer_of(recipe), dtype_of(job.target.precision),
                   recipe_of(recipe, 0), of);
  };
  RankMemory memory;
  PersistentLayout persistent;
  std::set<std::string> counted;
  const auto hold = [&](const Graph& g) {
    persistent.add(g);
    for (const Tensor& t : g.tensors) {
      if (!is_persistent(t.role) || t.alias != kNone || (t.on_host && job.target.cuda)) continue;
      if (!counted.insert(t.name).second) continue;
      (t.role == Role::parameter     ? memory.parameters
       : t.role == Role::accumulator ? memory.gradients
                                     : memory.state) += placed_bytes(t.storage_bytes());
    }
  };
  const auto recomputed = [&](Graph& g) {
    if (!budget && layout.recompute != Recompute::none)
      recompute(g, {layout.recompute, static_cast<int>(job.model.layers)});
  };
  CompileOptions options;
  options.memory_budget = budget;
  PipelineGraphs parts;
  if (layout.is_pipeline()) parts = build(build_pipeline_graphs, parallel);
  const std::vector<PipelineGraphs> ring = recompute_alike(options, parallel, job.target, build);
  for (PipelinePart& part : parts.parts) hold(part.graph), recomputed(part.graph);
  TrainingGraph t = layout.is_pipeline() ? parts.step : build(build_training_graph, parallel);
  hold(t.graph);
  if (!layout.is_pipeline()) recomputed(t.graph);
  size_t arena = VirtualRankSums(t, parallel, persistent, job.target).arena_bytes();
  if (layout.is_pipeline()) {
    const PipelineShape shape{layout.pipeline, layout.mesh.stage, static_cast<int>(layout.grad_accum), layout.chunks};
    const Pipeline pipeline(parts, shape, parallel, persistent, job.target, options, ring);
    arena = std::max(arena, pipeline.arena_bytes());
    memory.recomputation = pipeline.compiled(0).recomputation;
    options.memory_budget = 0;
  }
  const Program program(compile(std::move(t.graph), {t.loss, t.gradient_norm, t.guarded_norm}, job.target, options),
                        persistent);
  if (!layout.is_pipeline()) memory.recomputation = program.compiled().recomputation;
  arena = std::max(arena, program.arena_bytes());
  if (evaluates) arena = std::max(arena, evaluation_bytes(job, layout, parallel, persistent));
  memory.activations = arena - memory.persistent();
  memory.host = persistent.host_bytes();
  return memory;
}

}  // namespace llm
