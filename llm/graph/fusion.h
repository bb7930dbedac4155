// What the fusing passes share: who writes and who reads each tensor, named slots, and the sweep that tries a pattern
// at each node.
#pragma once
#include <string_view>
#include <vector>

#include "llm/graph/op.h"

namespace llm {

class Fusion {
 public:
  // `results` are read from outside.
  Fusion(Graph& graph, const std::vector<TensorId>& results) : g_(graph), results_(results) { count_uses(); }

 protected:
  static constexpr int kOutside = -1;  // no node

  Node& node(int i) { return g_.nodes[static_cast<size_t>(i)]; }
  static bool is(const Node& n, std::string_view name) { return n.op && n.op->name == name; }
  bool is(int i, std::string_view name) { return is(node(i), name); }

  using Slot = int Slots::*;
  static bool has(const Node& n, Slot s) { return n.op && n.op->slots.*s >= 0; }
  static size_t slot(const Node& n, Slot s) { return static_cast<size_t>(n.op->slots.*s); }
  static TensorId input(const Node& n, Slot s) { return n.input(slot(n, s)); }
  static TensorId output(const Node& n, Slot s) { return n.output(slot(n, s)); }

  bool is_result(TensorId id) const;
  // As they were before the sweep. Who reads a view reads what it is of.
  const std::vector<int>& readers(TensorId id) const { return readers_[static_cast<size_t>(id)]; }
  int first_reader(TensorId id) const { return readers(id).empty() ? kOutside : readers(id)[0]; }
  // The node that alone reads the tensor, which is no result; or kOutside.
  int only_reader(TensorId id) const { return readers(id).size() == 1 && !is_result(id) ? readers(id)[0] : kOutside; }
  int writer(TensorId id) const { return writers_[static_cast<size_t>(id)]; }

  // Tries a pattern at each node, then takes out the nodes that it left without an op; gives how many it fitted.
  template <class Pattern>
  int apply(Pattern pattern) {
    int count = 0;
    for (size_t i = 0; i < g_.nodes.size(); ++i)
      if (g_.nodes[i].op && pattern(static_cast<int>(i))) ++count;
    std::erase_if(g_.nodes, [](const Node& n) { return n.op == nullptr; });
    count_uses();
    return count;
  }

  Graph& g_;

 private:
  void count_uses();

  const std::vector<TensorId>& results_;
  std::vector<std::vector<int>> readers_;  // by tensor, in the order of the nodes
  std::vector<int> writers_;               // by tensor
};

}  // namespace llm
