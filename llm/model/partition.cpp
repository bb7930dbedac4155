// The parts of distribute.h around the sums: who steps what, sums of several virtual ranks on one rank, and what sends the
// stepped parameters to all.
#include <algorithm>

#include "llm/base/error.h"
#include "llm/model/distribute.h"
#include "llm/ops/exchange.h"
#include "llm/ops/square_sums.h"

namespace llm {
namespace {

using List = std::vector<int64_t>;

}  // namespace

Partition partition_of(const std::vector<Parameter>& table, OptimizerKind kind, int ranks) {
  const auto count = static_cast<size_t>(ranks);
  std::vector<double> adamw(count, 0), muon(count, 0);  // what each rank has to do so far
  const auto least = [](std::vector<double>& load, double more) {
    const auto at = std::min_element(load.begin(), load.end());
    *at += more;
    return static_cast<size_t>(at - load.begin());
  };
  Partition partition;
  for (const Parameter& p : table) {
    const int64_t elements = p.shape.elements(), blocks = square_sum_blocks(elements);
    std::vector<int64_t> bounds(count + 1, elements);
    if (takes_muon(p, kind) || blocks < ranks) {
      const size_t owner =
          takes_muon(p, kind) ? least(muon, muon_flops(p)) : least(adamw, static_cast<double>(elements));
      std::fill_n(bounds.begin(), owner + 1, 0);
    } else {
      for (int64_t r = 0; r < ranks; ++r) bounds[static_cast<size_t>(r)] = blocks * r / ranks * kGradientNormBlock;
    }
    partition.bounds.push_back(std::move(bounds));
  }
  return partition;
}

std::vector<DataParallel> DataParallel::ring() const {
  const RankGroup group = mesh.context_group(run_rank);
  std::vector<DataParallel> members;
  if (context_exchange != ContextExchange::ring || group.is_alone()) return members;
  for (int r = 0; r < group.ranks; ++r) members.push_back(*this), members.back().run_rank = group.in_run(r);
  return members;
}

std::string embedding_gradient_of(const std::string& parameter) { return parameter + ".grad.embedding"; }

TensorId separate_embedding_gradient(Graph& g, TensorId gradient) {
  Tensor& embedding = g.tensor(gradient);
  const TensorId head = embedding.alias;
  if (head == kNone) fail("the tied head has one gradient alone");
  embedding.name += ".embedding", embedding.alias = kNone;
  return head;
}

std::string saved_sum(const std::string& name, size_t place) { return concat(name, ".saved.", place); }

void add_embedding_gradients(Graph& g, const Graph& of) {
  for (const Tensor& t : of.tensors) {
    constexpr std::string_view kSuffix = ".embedding";
    if (t.role != Role::accumulator || t.alias != kNone || !t.name.ends_with(kSuffix)) continue;
    const TensorId head = g.find(std::string_view(t.name).substr(0, t.name.size() - kSuffix.size()));
    if (head == kNone) continue;
    TensorId embedding = g.find(t.name);
    if (embedding == kNone) {
      embedding = static_cast<TensorId>(g.tensors.size());
      g.tensors.push_back(t);
    }
    g.add("fold", {{"save", false}}, {embedding, head}, "embedding_gradient");
  }
}

Graph embedding_sum_graph(const Graph& of, const std::vector<TensorId>& gradients) {
  Graph g;
  for (const TensorId id : gradients) {
    Tensor tensor = of.tensor(of.storage(id));
    tensor.alias = kNone;
    if (of.find(tensor.name + ".embedding") != kNone) g.tensors.push_back(tensor);
  }
  g.phase = Phase::reduce;
  add_embedding_gradients(g, of);
  return g;
}

Graph fold_graph(const Graph& of, const std::vector<TensorId>& gradients, TensorId loss, size_t place, bool save) {
  Graph g;
  std::vector<TensorId> pairs, all = gradients;
  all.push_back(loss);
  for (const TensorId id : all) {
    Tensor tensor = of.tensor(of.storage(id));
    tensor.alias = kNone;
    Tensor saved = tensor;
    saved.role = Role::state, saved.name = saved_sum(tensor.name, place);
    for (const Tensor& t : {saved, tensor}) {
      pairs.push_back(static_cast<TensorId>(g.tensors.size()));
      g.tensors.push_back(t);
    }
  }
  g.phase = Phase::reduce;
  g.add("fold", {{"save", save}}, pairs, save ? "save" : "fold");
  return g;
}

void add_parameter_gather(Graph& graph, const std::vector<Parameter>& table, const DataParallel& parallel,
                          const Partition& partition) {
  if (parallel.ranks == 1 || parallel.zero == 0) return;
  if (parallel.divides_parameters()) return add_block_gathers(graph, table, parallel, partition);
  // A block at a time: each is under way while the next one is prepared.
  std::vector<std::pair<int64_t, std::vector<TensorId>>> started;
  for (size_t i = 0; i < table.size();) {
    const int layer = table[i].layer;
    std::vector<TensorId> tensors;
    List bounds;
    for (; i < table.size() && table[i].layer == layer; ++i) {
      tensors.push_back(graph.find(table[i].name));
      bounds.insert(bounds.end(), partition.bounds[i].begin(), partition.bounds[i].end());
    }
    Attributes a = group_attributes(parallel.group());
    a.set("bounds", bounds), a.set("channel", ++graph.channels);
    graph.layer = layer;
    const int64_t channel = graph.channels;
    started.emplace_back(channel, graph.add("all_gather_start", a, tensors, "parameters." + std::to_string(channel)));
  }
  graph.layer = -1;
  for (auto& [number, tensors] : started) wait_for_exchange(graph, number, tensors, {}, "parameters");
}

}  // namespace llm
