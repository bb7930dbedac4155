#include "llm/graph/op.h"
#include "llm/graph/passes.h"

namespace llm {

void add_workspaces(Graph& graph, const Target& target) {
  for (Node& node : graph.nodes) {
    const size_t bytes = node.op->workspace ? node.op->workspace(graph, node, target) : 0;
    if (bytes == 0 || node.workspace != kNone) continue;
    TensorId named = kNone;
    for (size_t i = 0; i < node.outputs.size() && named == kNone; ++i) named = node.outputs[i];
    const std::string name = named == kNone ? node.op->name : graph.tensor(named).name;
    node.workspace =
        graph.add_tensor(name + ".workspace", DType::fp32, {static_cast<int64_t>((bytes + 3) / 4)}, Role::workspace);
  }
}

}  // namespace llm
