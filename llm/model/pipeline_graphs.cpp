#include "llm/model/pipeline_graphs.h"

#include <algorithm>

#include "llm/graph/autodiff.h"
#include "llm/model/shard.h"
#include "llm/ops/exchange.h"

namespace llm {
namespace {

bool is_used(const Graph& g, TensorId id) {
  return std::any_of(g.nodes.begin(), g.nodes.end(), [&](const Node& node) {
    return std::any_of(node.inputs.begin(), node.inputs.end(),
                       [&](TensorId read) { return read != kNone && g.storage(read) == id; });
  });
}

PipelinePart part_of_run(const Graph& forward, const DataParallel& parallel, int part) {
  ModelPart cut = cut_part(forward, parallel.cuts, part);
  PipelinePart p{.graph = std::move(cut.graph)};
  Graph& g = p.graph;
  p.received = cut.received, p.sent = cut.sent;
  const TensorId weights = forward.nodes.back().inputs[1];  // of mean_loss
  std::vector<std::pair<TensorId, TensorId>> seeds;
  if (p.sent != kNone) {
    p.sent_gradient = g.add_tensor("sent.grad", g.dtype(p.sent), g.shape(p.sent), Role::input);
    seeds.emplace_back(p.sent, p.sent_gradient);
  } else {
    seeds.emplace_back(g.find("losses"), weights);
  }
  for (int l = parallel.cuts[static_cast<size_t>(part)]; l < parallel.cuts[static_cast<size_t>(part) + 1]; ++l)
    if (const TensorId losses = g.find(router_loss_of(l)); losses != kNone) seeds.emplace_back(losses, weights);
  const Gradients gradients =
      differentiate(g, seeds, p.received == kNone ? std::vector<TensorId>{} : std::vector{p.received});
  if (p.received != kNone) p.received_gradient = gradients.of(p.received);
  if (parallel.splits_backward) split_backward(g, p.received_gradient);
  const auto input = [&](const char* name) {
    const TensorId id = g.find(name);
    return is_used(g, id) ? id : kNone;
  };
  p.tokens = input("tokens"), p.targets = input("targets"), p.loss_weights = input("loss_weights");
  return p;
}

}  // namespace

std::vector<TensorId> PipelinePart::results() const {
  std::vector<TensorId> ids;
  for (const TensorId id : {sent, received_gradient, graph.find("loss")})
    if (id != kNone) ids.push_back(id);
  return ids;
}

std::vector<Parameter> table_of_stage(const std::vector<Parameter>& table, const DataParallel& parallel) {
  if (parallel.mesh.stage == 1) return table;
  std::vector<Parameter> own;
  for (const Parameter& p : table)
    if (part_of(p, parallel.cuts) % parallel.mesh.stage == parallel.mesh.place_of(parallel.run_rank).stage)
      own.push_back(p);
  return own;
}

PipelineGraphs build_pipeline_graphs(const ModelConfig& config, int64_t batch, int64_t tokens,
                                     const OptimizerOptions& options, DType dtype, const RecipeOptions& recipe,
                                     const DataParallel& parallel) {
  const Graph forward = build_forward(config, batch, tokens, dtype, recipe, parallel);
  const int stages = parallel.mesh.stage, stage = parallel.mesh.place_of(parallel.run_rank).stage;
  const bool is_first = stage == 0, is_last = stage + 1 == stages;
  PipelineGraphs all;
  for (int chunk = 0; chunk < parallel.chunks; ++chunk)
    all.parts.push_back(part_of_run(forward, parallel, chunk * stages + stage));
  const std::string tied = head_weight(config);
  if (config.tied_head && is_first) {
    // The head's gradient comes from the last stage to the place that has the parameter's name.
    Graph& g = all.parts.front().graph;
    for (Tensor& t : g.tensors)
      if (t.name == tied + ".grad") t.name = embedding_gradient_of(tied);
  }

  const std::vector<Parameter> sliced = sliced_table(parameter_table(config, recipe.parametrization), parallel.mesh);
  const std::vector<Parameter> table = table_of_stage(sliced, parallel);
  TrainingGraph& t = all.step;
  t.tokens = t.targets = t.loss_weights = t.losses = kNone;
  Graph& g = t.graph;
  g.channels = kStepChannels;
  const auto add = [&](const std::string& name) {
    g.tensors.push_back(forward.tensor(forward.find(name)));
    return g.tensors.back();
  };
  const auto add_gradient = [&](const std::string& name, const Tensor& of) {
    const TensorId id = g.add_tensor(name, DType::fp32, of.shape, Role::accumulator);
    g.tensor(id).spare_rows = of.spare_rows;
    return id;
  };
  for (const Parameter& p : table) {
    const Tensor parameter = add(p.name);
    t.gradients.push_back(add_gradient(p.name + ".grad", parameter));
    if (config.tied_head && p.name == tied) {
      add_gradient(embedding_gradient_of(tied), parameter);
      all.head_gradient = t.gradients.back();
    }
  }
  const bool has_copy = config.tied_head && is_last && !is_first;
  if (has_copy) all.head_gradient = add_gradient(tied + ".grad", add(tied));
  for (const Parameter& p : table)
    if (p.group == LearningRateGroup::router)
      t.router_statistics.push_back(g.add_tensor(router_statistics_of(p.layer), DType::fp32,
                                                 forward.shape(forward.find(router_statistics_of(p.layer))),
                                                 Role::accumulator));
  t.loss = g.add_tensor("loss", DType::fp32, {1}, Role::accumulator);
  add_step_end(t, table, sliced, options, parallel);
  if (config.tied_head && (is_first || is_last)) {
    RankGroup ends = parallel.mesh.stage_group(parallel.run_rank);
    ends = {is_first ? 0 : 1, 2, ends.first, ends.stride * (stages - 1)};
    const int64_t elements = g.shape(g.find(tied)).elements();
    Attributes a = group_attributes(ends);
    a.set("bounds", std::vector<int64_t>{0, elements, elements}), a.set("channel", int64_t{kTiedHeadChannel});
    const std::vector<TensorId> sent = g.add("all_gather_start", a, {g.find(tied)}, "tied_head");
    wait_for_exchange(g, kTiedHeadChannel, sent, {}, "tied_head");
  }
  return all;
}

}  // namespace llm
