#include <algorithm>

#include "llm/graph/passes.h"

namespace llm {

PassReport remove_dead_code(Graph& graph, const std::vector<TensorId>& results) {
  PassReport report{"dead code", "", graph.nodes.size(), 0};
  std::vector<bool> wanted(graph.tensors.size(), false);
  const auto want = [&](TensorId id) {
    for (; id != kNone; id = graph.tensor(id).alias) wanted[static_cast<size_t>(id)] = true;
  };
  for (TensorId id : results) want(id);
  std::vector<Node> kept;
  for (size_t i = graph.nodes.size(); i-- > 0;) {
    Node& node = graph.nodes[i];
    // A node that writes persistent memory is always live, and so is one that takes part in what ranks do together.
    const bool live =
        node.attributes.has("channel") || std::any_of(node.outputs.begin(), node.outputs.end(), [&](TensorId id) {
          return id != kNone && (wanted[static_cast<size_t>(id)] || is_persistent(graph.tensor(id).role));
        });
    if (!live) continue;
    for (TensorId id : node.inputs) want(id);
    kept.push_back(std::move(node));
  }
  std::reverse(kept.begin(), kept.end());
  graph.nodes = std::move(kept);
  report.nodes_after = graph.nodes.size();
  return report;
}

}  // namespace llm
