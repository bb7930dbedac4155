#include <algorithm>
#include <map>

#include "llm/graph/op.h"
#include "llm/graph/passes.h"

namespace llm {
namespace {

class Caster {
 public:
  explicit Caster(Graph& graph) : g_(graph) {}

  void run() {
    std::vector<Node> nodes = std::move(g_.nodes);
    g_.nodes.clear();
    for (Node& node : nodes) {
      if (node.op->cpu_takes_bf16 || !has_bf16(node)) {
        g_.nodes.push_back(std::move(node));
        continue;
      }
      widened_.clear();
      // What the op makes of the sum, it makes of the bf16 that others read.
      if (const int sum = node.op->slots.sum; sum >= 0 && is_bf16(node.output(static_cast<size_t>(sum))))
        node.attributes.set("bf16_sum", true);
      std::vector<std::pair<TensorId, TensorId>> outputs;  // (fp32, bf16)
      for (TensorId& id : node.inputs)
        if (is_bf16(id) && !reads_packed(node, id)) id = widen(node, id);
      for (TensorId& id : node.outputs) {
        if (!is_bf16(id)) continue;
        const Tensor narrow = g_.tensor(id);  // a copy, since add_tensor may move the tensors
        const TensorId wide = g_.add_tensor(narrow.name + ".fp32", DType::fp32, narrow.shape, Role::activation);
        // An output in place of an input now lies in place of that input's fp32 copy.
        if (widened_.contains(narrow.alias)) g_.tensor(wide).alias = widened_[narrow.alias];
        outputs.emplace_back(wide, id);
        id = wide;
      }
      g_.nodes.push_back(node);
      for (auto& [wide, narrow] : outputs) add_cast(node, wide, narrow);
    }
  }

 private:
  // State (the key-value cache) is read and written as it is.
  bool is_bf16(TensorId id) const {
    return id != kNone && g_.dtype(id) == DType::bf16 && g_.tensor(id).role != Role::state;
  }
  bool has_bf16(const Node& node) const {
    const auto bf16 = [&](TensorId id) { return is_bf16(id); };
    return std::any_of(node.inputs.begin(), node.inputs.end(),
                       [&](TensorId id) { return is_bf16(id) && !reads_packed(node, id); }) ||
           std::any_of(node.outputs.begin(), node.outputs.end(), bf16);
  }

  // Whether the node's kernel takes this weight as it is.
  static bool reads_packed(const Node& node, TensorId id) {
    const int i = node.op->packed_input;
    return i >= 0 && node.input(static_cast<size_t>(i)) == id &&
           (!node.op->packed_where_row_invariant || node.attributes.flag("row_invariant"));
  }

  TensorId widen(const Node& node, TensorId id) {
    if (const auto found = widened_.find(id); found != widened_.end()) return found->second;
    const std::string name = g_.tensor(id).name + ".fp32";
    const TensorId wide = g_.add_tensor(name, DType::fp32, g_.shape(id), Role::activation);
    add_cast(node, id, wide);
    return widened_[id] = wide;
  }

  void add_cast(const Node& node, TensorId from, TensorId to) {
    Node cast;
    cast.op = op_named("cast");
    cast.attributes.set("bf16", is_bf16(to));
    cast.inputs = {from};
    cast.outputs = {to};
    cast.phase = node.phase;
    cast.layer = node.layer;
    g_.nodes.push_back(std::move(cast));
  }

  Graph& g_;
  std::map<TensorId, TensorId> widened_;  // bf16 input of the current node -> its fp32 copy
};

}  // namespace

PassReport cast_for_cpu(Graph& graph) {
  PassReport report{"casts for the CPU", "", graph.nodes.size(), 0};
  Caster(graph).run();
  report.nodes_after = graph.nodes.size();
  report.detail = std::to_string(report.nodes_after - report.nodes_before) + " casts";
  return report;
}

}  // namespace llm
