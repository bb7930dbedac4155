#include "llm/model/stages.h"

#include <algorithm>
#include <limits>
#include <set>

#include "llm/base/error.h"
#include "llm/model/gpt.h"

namespace llm {
namespace {

// The part of each node, and whether it depends on inputs alone.
struct NodePlaces {
  std::vector<int> part;
  std::vector<bool> is_free;
};

NodePlaces places_of(const Graph& g, const std::vector<int>& cuts) {
  const int parts = static_cast<int>(cuts.size()) - 1;
  NodePlaces places;
  bool is_behind = false;
  std::set<TensorId> free;
  for (const Node& node : g.nodes) {
    is_behind = is_behind || node.layer >= 0;
    int part = is_behind && node.layer < 0 ? parts - 1 : 0;
    if (node.layer >= 0)
      part = static_cast<int>(std::upper_bound(cuts.begin(), cuts.end() - 1, node.layer) - cuts.begin()) - 1;
    const bool is_free = std::all_of(node.inputs.begin(), node.inputs.end(), [&](TensorId id) {
      return id == kNone || g.tensor(g.storage(id)).role == Role::input || free.contains(g.storage(id));
    });
    places.part.push_back(part);
    places.is_free.push_back(is_free);
    for (const TensorId id : node.outputs)
      if (is_free && id != kNone) free.insert(g.storage(id));
  }
  return places;
}

}  // namespace

std::vector<int> cut_layers(const ModelConfig& c, int64_t tokens, int parts) {
  const int L = static_cast<int>(c.layers);
  if (parts > L) fail_usage(parts, " parts of a pipeline need as many layers, and the model has ", L);
  const double head = 6 * static_cast<double>(c.vocabulary * c.channels);
  const double layer = (training_flops_per_token(c, tokens) - head) / L;
  // best[p][l]: of the first l layers in p parts, the cost of the most expensive one.
  constexpr double kNever = std::numeric_limits<double>::infinity();
  const auto rows = static_cast<size_t>(parts) + 1, columns = static_cast<size_t>(L) + 1;
  std::vector<std::vector<double>> best(rows, std::vector<double>(columns, kNever));
  std::vector<std::vector<int>> from(rows, std::vector<int>(columns, 0));
  best[0][0] = 0;
  for (size_t p = 1; p < rows; ++p)
    for (size_t l = p; l < columns; ++l)
      for (size_t k = p - 1; k < l; ++k) {
        const double own = static_cast<double>(l - k) * layer + (p + 1 == rows ? head : 0);
        if (const double cost = std::max(best[p - 1][k], own); cost < best[p][l])
          best[p][l] = cost, from[p][l] = static_cast<int>(k);
      }
  std::vector<int> cuts = {L};
  for (size_t p = rows - 1; p > 0; --p) cuts.push_back(from[p][static_cast<size_t>(cuts.back())]);
  std::reverse(cuts.begin(), cuts.end());
  return cuts;
}

int part_of(const Parameter& p, const std::vector<int>& cuts) {
  if (p.layer >= 0) return static_cast<int>(std::upper_bound(cuts.begin(), cuts.end() - 1, p.layer) - cuts.begin()) - 1;
  return p.group == LearningRateGroup::embedding ? 0 : static_cast<int>(cuts.size()) - 2;
}

ModelPart cut_part(const Graph& whole, const std::vector<int>& cuts, int part) {
  const NodePlaces places = places_of(whole, cuts);
  ModelPart result{.graph = whole};
  Graph& g = result.graph;
  std::vector<bool> kept(whole.nodes.size(), false);
  // By storage. Any part may have losses of its own (of routers), which the weights are the gradient of.
  std::set<TensorId> read = {whole.storage(whole.nodes.back().inputs[1])};
  for (size_t n = whole.nodes.size(); n-- > 0;) {
    const Node& node = whole.nodes[n];
    const bool is_read = std::any_of(node.outputs.begin(), node.outputs.end(),
                                     [&](TensorId id) { return id != kNone && read.contains(whole.storage(id)); });
    kept[n] = places.part[n] == part || (places.is_free[n] && is_read);
    if (!kept[n]) continue;
    for (const TensorId id : node.inputs)
      if (id != kNone) read.insert(whole.storage(id));
  }
  std::set<TensorId> received, sent;
  std::set<TensorId> made_here, made_elsewhere;
  for (size_t n = 0; n < whole.nodes.size(); ++n)
    for (const TensorId id : whole.nodes[n].outputs)
      if (id != kNone) (kept[n] ? made_here : made_elsewhere).insert(whole.storage(id));
  for (size_t n = 0; n < whole.nodes.size(); ++n)
    for (const TensorId id : whole.nodes[n].inputs) {
      if (id == kNone) continue;
      const TensorId storage = whole.storage(id);
      if (kept[n] && made_elsewhere.contains(storage) && !made_here.contains(storage)) received.insert(id);
      if (places.part[n] > part && made_here.contains(storage) && !places.is_free[n]) sent.insert(id);
    }
  // What each part makes for itself is not sent.
  for (size_t n = 0; n < whole.nodes.size(); ++n)
    for (const TensorId made : whole.nodes[n].outputs)
      if (places.is_free[n]) std::erase_if(sent, [&](TensorId id) { return whole.storage(id) == made; });
  if (received.size() > 1 || sent.size() > 1) fail("more than the residual stream passes between parts of the model");
  if (!received.empty()) {
    result.received = *received.begin();
    g.tensor(result.received).role = Role::input;
    g.tensor(result.received).name = "received";
  }
  if (!sent.empty()) result.sent = *sent.begin();
  std::vector<Node> nodes;
  for (size_t n = 0; n < whole.nodes.size(); ++n)
    if (kept[n]) nodes.push_back(whole.nodes[n]);
  g.nodes = std::move(nodes);
  for (size_t i = 0; i < g.tensors.size(); ++i)
    if (is_persistent(g.tensors[i].role) && !read.contains(static_cast<TensorId>(i)) &&
        !made_here.contains(static_cast<TensorId>(i)))
      g.tensors[i].role = Role::activation;
  return result;
}

}  // namespace llm
