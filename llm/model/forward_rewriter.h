// What passes over a forward graph have in common that make another graph of it, node by node: those that share a model out
// among ranks.
#pragma once
#include <string>
#include <vector>

#include "llm/graph/graph.h"

namespace llm {

class ForwardRewriter {
 public:
  virtual ~ForwardRewriter() = default;

  Graph run() {
    for (size_t i = 0; i < from_.tensors.size(); ++i)
      if (const Tensor& t = from_.tensors[i];
          t.alias == kNone && (t.role == Role::parameter || t.role == Role::input)) {
        ids_[i] = static_cast<TensorId>(g_.tensors.size());
        g_.tensors.push_back(adapted(t));
      }
    begin();
    for (const Node& node : from_.nodes) {
      g_.phase = node.phase, g_.layer = node.layer;
      const std::vector<TensorId> outputs = add(node);
      for (size_t i = 0; i < node.outputs.size(); ++i) {
        if (node.outputs[i] == kNone) continue;
        ids_[static_cast<size_t>(node.outputs[i])] = outputs[i];
        g_.tensor(outputs[i]).name = from_.tensor(node.outputs[i]).name;
      }
    }
    g_.layer = -1;
    return std::move(g_);
  }

 protected:
  // `channels`: the number of the last exchange before the first one of the new graph.
  ForwardRewriter(const Graph& from, int64_t channels) : from_(from), ids_(from.tensors.size(), kNone) {
    g_.channels = channels;
  }

  // A parameter or an input, as the new graph has it.
  virtual Tensor adapted(const Tensor& tensor) const { return tensor; }
  // Called in front of the first node.
  virtual void begin() {}
  // Appends what stands for a node, and returns what stands for its outputs.
  virtual std::vector<TensorId> add(const Node& node) = 0;

  // What stands for a tensor; kNone: nothing yet.
  TensorId id_of(TensorId from) const { return from == kNone ? kNone : ids_[static_cast<size_t>(from)]; }
  std::string name_of(const Node& node) const { return from_.tensor(node.outputs[0]).name; }

  const Graph& from_;
  Graph g_;                    // the new one
  std::vector<TensorId> ids_;  // by tensor of `from_`
};

}  // namespace llm
