// What the tests of graphs and of passes share.
#pragma once
#include <doctest/doctest.h>

#include <map>
#include <string>

#include "test/reference.h"

namespace llm::reference {

// The noise of the same sums in another order: at most 5.5e-7 of a tensor's largest value was measured.
inline constexpr double kNoise = 2e-6;

inline Snapshot train(const ModelConfig& config, const Trainer::Settings& settings, int steps = 3) {
  return Trainer(config, settings).after_steps(steps);
}

inline void check_equal(const Snapshot& a, const Snapshot& b) {
  REQUIRE(a.size() == b.size());
  for (auto& [name, words] : a) CHECK_MESSAGE(words == b.at(name), name, " differs");
}

inline std::map<std::string, int> count_ops(const Graph& g) {
  std::map<std::string, int> counts;
  for (const Node& node : g.nodes) ++counts[node.op->name];
  return counts;
}

inline Graph input_graph(Shape shape, TensorId& x) {
  Graph g;
  x = g.add_tensor("x", DType::fp32, shape, Role::input);
  return g;
}

}  // namespace llm::reference
