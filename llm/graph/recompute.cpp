// Recomputation (Chen et al. 2016; by kind of op, as in Korthikanti et al. 2022): forward nodes of a layer whose
// outputs the layer's backward pass reads are cloned in front of that backward pass, and the backward nodes read the
// clones. The memory plan then ends the lifetimes of the original outputs in the forward pass. The clones are the same
// kernels on the same inputs, so cloning changes no bit.
#include <algorithm>
#include <map>
#include <set>

#include "llm/graph/passes.h"

namespace llm {
namespace {

// A gather of divided parameters is always made again: keeping what it brought would be as if nothing was divided.
bool is_gather(const Node& node) { return node.attributes.flag("again"); }

// The level is the op's, or the node's own.
bool recomputes(Recompute level, const Node& node) {
  const auto from =
      static_cast<Recompute>(node.attributes.integer("recompute", static_cast<int64_t>(node.op->recompute)));
  return is_gather(node) || (from != Recompute::none && level >= from);
}

class Recomputer {
 public:
  Recomputer(Graph& graph, RecomputeChoice choice) : g_(graph), choice_(choice) {}

  int run() {
    std::map<int, std::vector<size_t>> forward;  // layer -> its forward nodes, in order
    std::map<int, std::vector<size_t>> backward;
    for (size_t i = 0; i < g_.nodes.size(); ++i)
      if (const Node& n = g_.nodes[i]; n.layer >= 0)
        (n.phase == Phase::forward ? forward : backward)[n.layer].push_back(i);
    std::map<size_t, std::vector<Node>> inserted;  // clones, by the node in front of which they go
    for (auto& [layer, nodes] : forward) {
      const Recompute level = level_of(layer);
      if (backward[layer].empty()) continue;
      for (Node& clone : clone_layer(level, nodes, backward[layer])) {
        // A gather is under way during the backward pass of the block behind.
        const auto behind = backward.find(layer + 1);
        const bool starts_early =
            is_gather(clone) && clone.op->name != std::string_view("exchange_wait") && behind != backward.end();
        inserted[(starts_early ? behind->second : backward[layer]).front()].push_back(std::move(clone));
      }
    }
    std::vector<Node> result;
    int clones = 0;
    for (size_t i = 0; i < g_.nodes.size(); ++i) {
      if (auto found = inserted.find(i); found != inserted.end())
        for (Node& clone : found->second) {
          result.push_back(std::move(clone));
          ++clones;
        }
      result.push_back(std::move(g_.nodes[i]));
    }
    g_.nodes = std::move(result);
    return clones;
  }

 private:
  Recompute level_of(int layer) const {
    const int level = static_cast<int>(choice_.level);
    return static_cast<Recompute>(layer < choice_.layers ? level : std::max(0, level - 1));
  }

  std::vector<Node> clone_layer(Recompute level, const std::vector<size_t>& forward,
                                const std::vector<size_t>& backward) {
    std::set<TensorId> needed;
    for (size_t i : backward)
      for (TensorId id : g_.nodes[i].inputs) needed.insert(id);
    std::vector<size_t> cloned;
    for (size_t k = forward.size(); k-- > 0;) {
      const Node& node = g_.nodes[forward[k]];
      const bool wanted =
          std::any_of(node.outputs.begin(), node.outputs.end(), [&](TensorId id) { return needed.contains(id); });
      if (!wanted || !recomputes(level, node)) continue;
      for (TensorId id : node.inputs) needed.insert(id);
      cloned.push_back(forward[k]);
    }
    std::reverse(cloned.begin(), cloned.end());
    std::map<TensorId, TensorId> clone_of;
    const auto renamed = [&](TensorId id) { return clone_of.contains(id) ? clone_of[id] : id; };
    std::vector<Node> clones;
    for (size_t i : cloned) {
      Node node = g_.nodes[i];
      node.phase = Phase::backward;
      for (TensorId& id : node.inputs) id = renamed(id);
      for (TensorId& id : node.outputs) {
        const TensorId copy = copy_tensor(id);
        if (copy != kNone && g_.tensor(id).alias != kNone) g_.tensor(copy).alias = renamed(g_.tensor(id).alias);
        id = clone_of[id] = copy;
      }
      clones.push_back(std::move(node));
    }
    for (size_t i : backward)
      for (TensorId& id : g_.nodes[i].inputs) id = renamed(id);
    return clones;
  }

  TensorId copy_tensor(TensorId id) {
    if (id == kNone) return kNone;
    const Tensor t = g_.tensor(id);
    return g_.add_tensor(t.name + ".again", t.dtype, t.shape, t.role);
  }

  Graph& g_;
  RecomputeChoice choice_;
};

}  // namespace

const char* name_of(Recompute level) {
  switch (level) {
    case Recompute::none: return "none";
    case Recompute::activations: return "activations";
    case Recompute::norms: return "activations and norms";
    case Recompute::attention: return "activations, norms and attention";
    case Recompute::block: return "whole blocks";
  }
  return "?";
}

PassReport recompute(Graph& graph, RecomputeChoice choice) {
  PassReport report{"recomputation", "none", graph.nodes.size(), 0};
  const int clones = Recomputer(graph, choice).run();
  if (choice.level == Recompute::none) {
    report.detail = "gathers of parameters: " + std::to_string(clones) + " nodes run again";
  } else {
    report.detail = std::string(name_of(choice.level)) + " in " + std::to_string(choice.layers) + " layers" +
                    (static_cast<int>(choice.level) > 1
                         ? ", " + std::string(name_of(static_cast<Recompute>(static_cast<int>(choice.level) - 1))) +
                               " in the others"
                         : "") +
                    ": " + std::to_string(clones) + " nodes run again";
  }
  report.nodes_after = graph.nodes.size();
  return report;
}

}  // namespace llm
