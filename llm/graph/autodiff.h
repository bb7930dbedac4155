// Reverse-mode differentiation as a graph transformation: one walk from the last node to the first calls each op's
// `backward`, which appends ordinary nodes. Nothing is saved by hand; what a backward node reads, the memory plan sees.
#pragma once
#include <utility>
#include <vector>

#include "llm/graph/graph.h"

namespace llm {

class Gradients {
 public:
  Gradients(Graph& graph, std::vector<bool> wanted) : graph_(graph), wanted_(std::move(wanted)) {}

  // The gradient that flows into `tensor`, kNone when none does.
  TensorId of(TensorId tensor) const;
  // Whether a gradient with respect to `tensor` is of use: it is a parameter or depends on one.
  bool wanted(TensorId tensor) const;
  // Adds `gradient` to what flows into `tensor`. For an activation a second contribution becomes an `add` node. For a
  // parameter, `gradient` must be the fresh output of the last node; it turns into the parameter's persistent gradient,
  // and a second contribution is added in place by its own node (KernelCall::accumulates).
  void contribute(TensorId tensor, TensorId gradient);

 private:
  Graph& graph_;
  std::vector<bool> wanted_;
  std::vector<TensorId> gradient_;
};

// Appends the backward pass of all nodes so far. `seeds`: (tensor, its given gradient). `targets` adds tensors whose
// gradient is wanted although they are not parameters (gradient checks). The result answers Gradients::of.
Gradients differentiate(Graph& graph, const std::vector<std::pair<TensorId, TensorId>>& seeds,
                        const std::vector<TensorId>& targets = {});

}  // namespace llm
