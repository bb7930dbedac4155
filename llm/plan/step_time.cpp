#include "llm/plan/step_time.h"

#include <algorithm>

#include "llm/base/error.h"
#include "llm/model/pipeline_graphs.h"
#include "llm/model/shard.h"
#include "llm/train/pipeline_schedule.h"

namespace llm {
namespace {

constexpr int kBlocks = 3;  // of the model whose middle block is measured

Phase phase_of(const Graph& g, const Node& node) {
  if (node.phase != Phase::backward) return node.phase;
  // What makes parameters' gradients alone can wait.
  const bool is_late = std::all_of(node.outputs.begin(), node.outputs.end(), [&](TensorId id) {
    return id == kNone || g.tensor(g.storage(id)).role == Role::accumulator;
  });
  return is_late && !node.outputs.empty() ? Phase::weights : Phase::backward;
}

// Seconds of kernels between the start of an exchange and its wait.
double kernels_until_wait(const Graph& g, size_t start, const Hardware& h) {
  double seconds = 0;
  for (size_t n = start + 1; n < g.nodes.size() && g.nodes[n].phase == g.nodes[start].phase; ++n) {
    const Node& node = g.nodes[n];
    const bool is_wait = std::string_view(node.op->name) == "exchange_wait";
    if (is_wait && node.attributes.integer("channel") == g.nodes[start].attributes.integer("channel")) return seconds;
    seconds += time_of(g, node, h).device;
  }
  return seconds;
}

}  // namespace

TrainOptions recipe_of(const Job& job, const Layout& layout) {
  TrainOptions o = job.recipe;
  o.context = job.context, o.batch = layout.batch, o.grad_accum = layout.grad_accum, o.zero = layout.zero;
  o.mesh = layout.mesh, o.virtual_ranks = layout.mesh.data, o.pipeline = layout.pipeline, o.chunks = layout.chunks;
  o.context_exchange = layout.exchange;
  o.offload = layout.offload ? Offload::optimizer : Offload::none;
  return o;
}

DataParallel parallel_of(const Job& job, const Layout& layout, int run_rank) {
  const Mesh& mesh = layout.mesh;
  DataParallel p{.rank = mesh.place_of(run_rank).data,
                 .ranks = mesh.data,
                 .virtual_ranks = mesh.data,
                 .micro_steps = layout.grad_accum,
                 .zero = layout.zero,
                 .mesh = mesh,
                 .run_rank = run_rank,
                 .context_exchange = layout.exchange,
                 .chunks = layout.chunks,
                 .splits_backward = layout.pipeline == PipelineKind::zero_bubble};
  if (layout.is_pipeline())
    p.cuts = layout.cuts.empty() ? cut_layers(job.model, job.context, mesh.stage * layout.chunks) : layout.cuts;
  return p;
}

StepTimer::Parts StepTimer::parts_of(const Layout& layout) {
  const bool messages_between_nodes = layout.is_pipeline() && layout.mesh.ranks() > hardware_.ranks_a_node;
  Layout own = layout;
  own.mesh.stage = 1, own.mesh.data = layout.zero == 3 ? layout.mesh.data : 1;
  own.zero = layout.zero == 3 ? 3 : 0;
  const std::string key = concat(own.mesh.text(), " ", name_of(layout.exchange), layout.batch,
                                 name_of(layout.recompute), messages_between_nodes);
  if (const auto found = parts_.find(key); found != parts_.end()) return found->second;
  Job small = job_;
  small.model.layers = kBlocks;
  Hardware hardware = hardware_;
  if (layout.mesh.tensor > 1) hardware.logit_ps = hardware.shared_logit_ps;
  const TrainOptions recipe = recipe_of(small, own);
  TrainingGraph t =
      build_training_graph(small.model, layout.batch, job_.context, optimizer_of(recipe),
                           dtype_of(job_.target.precision), recipe_of(recipe, 0), parallel_of(small, own, 0));
  recompute(t.graph, {layout.recompute, kBlocks});
  const std::vector<TensorId> results = {t.loss, t.gradient_norm, t.guarded_norm};
  const Compiled compiled = compile(std::move(t.graph), results, job_.target);
  const Graph& g = compiled.graph;
  Parts parts;
  bool is_behind = false;  // the blocks, in the forward pass; in the backward pass: not yet past them
  for (size_t n = 0; n < g.nodes.size(); ++n) {
    const Node& node = g.nodes[n];
    if (!kMicroStep.contain(node.phase)) continue;
    PassTime time = time_of(g, node, hardware, messages_between_nodes);
    if (node.attributes.has("channel") && time.exchange > 0)
      time.exchange = std::max(0.0, time.exchange - hardware.hidden_zero * kernels_until_wait(g, n, hardware));
    const Phase phase = phase_of(g, node);
    if (node.layer >= 0) is_behind = phase == Phase::forward;
    if (node.layer >= 0 && node.layer != kBlocks / 2) continue;
    Passes& part = node.layer >= 0 ? parts.block : is_behind ? parts.back : parts.front;
    (phase == Phase::forward ? part.forward : phase == Phase::weights ? part.weights : part.backward) += time;
  }
  return parts_[key] = parts;
}

StepTimer::End StepTimer::end_of(const Layout& layout, int stage) {
  const Mesh& mesh = layout.mesh;
  const std::string key =
      concat(mesh.text(), " stage ", stage, " ZeRO ", layout.zero, layout.offload ? " offload" : "");
  if (const auto found = ends_.find(key); found != ends_.end()) return found->second;
  const DataParallel parallel = parallel_of(job_, layout, mesh.rank_of({.stage = stage}));
  const TrainOptions recipe = recipe_of(job_, layout);
  const std::vector<Parameter> all = sliced_table(parameter_table(job_.model, parametrization_of(recipe)), mesh);
  const std::vector<Parameter> table = table_of_stage(all, parallel);
  TrainingGraph t;
  for (const Parameter& p : table) {
    t.graph.add_tensor(p.name, type_of(p, dtype_of(job_.target.precision), {}), p.shape, Role::parameter);
    t.gradients.push_back(t.graph.add_tensor(p.name + ".grad", DType::fp32, p.shape, Role::accumulator));
  }
  t.loss = t.graph.add_tensor("loss", DType::fp32, {1}, Role::accumulator);
  add_step_end(t, table, all, optimizer_of(recipe), parallel);
  const Compiled compiled = compile(std::move(t.graph), {t.loss, t.gradient_norm, t.guarded_norm}, job_.target);
  End end;
  for (const Node& node : compiled.graph.nodes)
    (node.phase == Phase::optimizer ? end.optimizer : end.reduce) += time_of(compiled.graph, node, hardware_);
  return ends_[key] = end;
}

StepTime StepTimer::time(const Layout& layout, bool is_stalled) {
  const Mesh& mesh = layout.mesh;
  const Parts parts = parts_of(layout);
  const DataParallel parallel = parallel_of(job_, layout, 0);
  const auto micro_batches = static_cast<double>(layout.grad_accum);
  const auto reaches = [](double value, double least) { return least > 0 && value >= least; };
  const double nodes = mesh.ranks() / hardware_.ranks_a_node;
  is_stalled = is_stalled || reaches(nodes, hardware_.stall_nodes);
  if (layout.is_pipeline())
    is_stalled = is_stalled || reaches(mesh.tensor / hardware_.ranks_a_node, hardware_.stall_tensor_nodes) ||
                 (layout.zero > 0 && reaches(std::min<double>(nodes, mesh.data), hardware_.stall_divided_nodes));
  const double stall = is_stalled ? hardware_.stall_ms * 1e-3 : 0;
  std::vector<PassTimes> times;  // by stage
  double busy = 0, compute = 0;  // of all stages, a micro-batch
  for (int stage = 0; stage < mesh.stage; ++stage) {
    double layers = static_cast<double>(job_.model.layers);
    if (layout.is_pipeline()) {
      layers = 0;
      for (int part = stage; part < mesh.stage * layout.chunks; part += mesh.stage)
        layers += parallel.cuts[static_cast<size_t>(part) + 1] - parallel.cuts[static_cast<size_t>(part)];
    }
    const auto sum = [&](PassTime Passes::*pass, double (PassTime::*seconds)() const) {
      return layers * (parts.block.*pass.*seconds)() + (stage == 0 ? (parts.front.*pass.*seconds)() : 0) +
             (stage + 1 == mesh.stage ? (parts.back.*pass.*seconds)() : 0) +
             (pass == &Passes::forward ? hardware_.micro_step_ms * 1e-3 : 0);
    };
    const auto all = [&](PassTime Passes::*pass) { return sum(pass, &PassTime::total) / layout.chunks; };
    const double stalled = stall * ((stage > 0) + (stage + 1 < mesh.stage));
    times.push_back({all(&Passes::forward) + stalled, all(&Passes::backward) + stalled, all(&Passes::weights)});
    for (PassTime Passes::*pass : {&Passes::forward, &Passes::backward, &Passes::weights})
      busy += sum(pass, &PassTime::total), compute += sum(pass, &PassTime::compute);
  }
  busy *= micro_batches / mesh.stage, compute *= micro_batches / mesh.stage;
  double length = busy + (layout.is_pipeline() ? 0 : micro_batches * stall);
  if (layout.is_pipeline()) {
    const PipelineShape shape{layout.pipeline, mesh.stage, static_cast<int>(layout.grad_accum), layout.chunks};
    const double bytes = static_cast<double>(layout.batch * job_.context * job_.model.channels / mesh.sharing()) *
                         static_cast<double>(size_of(dtype_of(job_.target.precision)));
    RankGroup two = mesh.stage_group(0);
    two.ranks = 2;
    const double message = exchange_time(two, bytes, hardware_);
    length = simulate(shape, make_schedule(shape), times, message).length;
  }
  double reduce = 0, optimizer = 0;
  for (int stage = 0; stage < mesh.stage; stage += std::max(1, mesh.stage - 1)) {
    const End end = end_of(layout, stage);
    reduce = std::max(reduce, end.reduce.total()), optimizer = std::max(optimizer, end.optimizer.total());
  }
  // Exchanges of gradients begin beside the last backward pass, but for a pipeline's.
  const double hidden = layout.zero == 0 ? hardware_.hidden : hardware_.hidden_zero;
  if (!layout.is_pipeline()) reduce -= std::min(reduce, hidden * (times[0].backward + times[0].weights));
  return {.compute = compute,
          .exchange = busy - compute + reduce,
          .bubble = length - busy,
          .optimizer = optimizer + hardware_.step_ms * 1e-3};
}

}  // namespace llm
