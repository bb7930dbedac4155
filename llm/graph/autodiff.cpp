#include "llm/graph/autodiff.h"

#include <algorithm>

#include "llm/graph/op.h"

namespace llm {

TensorId Gradients::of(TensorId tensor) const {
  const auto i = static_cast<size_t>(tensor);
  return tensor != kNone && i < gradient_.size() ? gradient_[i] : kNone;
}

bool Gradients::wanted(TensorId tensor) const {
  const auto i = static_cast<size_t>(tensor);
  return tensor != kNone && i < wanted_.size() && wanted_[i];
}

void Gradients::contribute(TensorId tensor, TensorId gradient) {
  if (!wanted(tensor) || gradient == kNone) return;
  if (gradient_.size() < wanted_.size()) gradient_.resize(wanted_.size(), kNone);
  TensorId& current = gradient_[static_cast<size_t>(tensor)];
  const std::string name = graph_.tensor(tensor).name + ".grad";
  if (graph_.tensor(tensor).role == Role::parameter) {
    Tensor& g = graph_.tensor(gradient);
    g.role = Role::accumulator;
    g.name = name;
    g.alias = current;
    g.spare_rows = graph_.tensor(tensor).spare_rows;
    current = gradient;
    return;
  }
  if (current == kNone) {
    // A seed is an input, which the caller named; only activations get the new name.
    if (graph_.tensor(gradient).role == Role::activation) graph_.tensor(gradient).name = name;
    current = gradient;
  } else {
    current = graph_.add("add", {}, {current, gradient}, name)[0];
  }
}

Gradients differentiate(Graph& graph, const std::vector<std::pair<TensorId, TensorId>>& seeds,
                        const std::vector<TensorId>& targets) {
  std::vector<bool> wanted(graph.tensors.size(), false);
  for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = graph.tensors[i].role == Role::parameter;
  for (TensorId id : targets) wanted[static_cast<size_t>(id)] = true;
  const auto reaches = [&](TensorId id) { return id != kNone && wanted[static_cast<size_t>(id)]; };
  for (const Node& node : graph.nodes)
    if (std::any_of(node.inputs.begin(), node.inputs.end(), reaches))
      for (TensorId id : node.outputs)
        if (id != kNone) wanted[static_cast<size_t>(id)] = true;

  Gradients gradients(graph, std::move(wanted));
  for (auto& [tensor, gradient] : seeds) gradients.contribute(tensor, gradient);
  graph.phase = Phase::backward;
  for (size_t i = graph.nodes.size(); i-- > 0;) {
    const Node node = graph.nodes[i];  // a copy, since `backward` appends to graph.nodes
    const auto flows = [&](TensorId id) { return gradients.of(id) != kNone; };
    if (std::none_of(node.outputs.begin(), node.outputs.end(), flows)) continue;
    if (!node.op->backward) fail("op ", node.op->name, " has no gradient, but one flows into it");
    graph.layer = node.layer;
    node.op->backward(graph, node, gradients);
  }
  graph.layer = -1;
  return gradients;
}

namespace {

// `may_be`: of nodes that only make gradients of parameters, which ones are put behind the others.
template <class MayBe>
size_t defer(Graph& graph, TensorId result, MayBe may_be) {
  std::vector<bool> read_elsewhere(graph.tensors.size(), false);  // by a node that keeps its place, or the caller
  if (result != kNone) read_elsewhere[static_cast<size_t>(graph.storage(result))] = true;
  std::vector<Node> kept, deferred;
  for (size_t i = graph.nodes.size(); i-- > 0;) {
    Node& node = graph.nodes[i];
    const auto is_free = [&](TensorId id) {
      if (id == kNone) return true;
      const TensorId storage = graph.storage(id);
      const Tensor& tensor = graph.tensor(storage);
      return !read_elsewhere[static_cast<size_t>(storage)] && tensor.role != Role::parameter &&
             tensor.role != Role::state;
    };
    const bool is_deferred =
        node.phase == Phase::backward && may_be(node) && std::all_of(node.outputs.begin(), node.outputs.end(), is_free);
    if (!is_deferred)
      for (const TensorId id : node.inputs)
        if (id != kNone) read_elsewhere[static_cast<size_t>(graph.storage(id))] = true;
    (is_deferred ? deferred : kept).push_back(std::move(node));
  }
  graph.nodes.assign(std::make_move_iterator(kept.rbegin()), std::make_move_iterator(kept.rend()));
  graph.nodes.insert(graph.nodes.end(), std::make_move_iterator(deferred.rbegin()),
                     std::make_move_iterator(deferred.rend()));
  return deferred.size();
}

}  // namespace

size_t defer_weight_gradients(Graph& graph, int layers) {
  return defer(graph, kNone, [&](const Node& node) { return node.layer >= 0 && node.layer < layers; });
}

void split_backward(Graph& graph, TensorId result) {
  const size_t count = defer(graph, result, [](const Node&) { return true; });
  for (size_t n = graph.nodes.size() - count; n < graph.nodes.size(); ++n) graph.nodes[n].phase = Phase::weights;
}

}  // namespace llm
