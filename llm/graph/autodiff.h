// Reverse-mode differentiation as a graph transformation: one walk from the last node to the first calls each op's
// `backward`, which appends ordinary nodes. Nothing is saved by hand: the memory plan keeps what a backward node reads.
#pragma once
#include <utility>
#include <vector>

#include "llm/graph/graph.h"

namespace llm {

class Gradients {
 public:
  Gradients(Graph& graph, std::vector<bool> wanted) : graph_(graph), wanted_(std::move(wanted)) {}

  // The gradient that flows into `tensor`; kNone when none does.
  TensorId of(TensorId tensor) const;
  // Whether a gradient with respect to `tensor` is of use: `tensor` is a parameter or a target, or depends on one.
  bool wanted(TensorId tensor) const;
  // Adds `gradient` to what flows into `tensor`. For an activation, a second contribution becomes an `add` node. For a
  // parameter, `gradient` must be a new output of the node added last. It becomes the parameter's persistent gradient,
  // and the node of a second contribution adds to the same memory (KernelCall::accumulates).
  void contribute(TensorId tensor, TensorId gradient);

 private:
  Graph& graph_;
  std::vector<bool> wanted_;
  std::vector<TensorId> gradient_;
};

// Appends the backward pass of all nodes so far. `seeds`: pairs of a tensor and its given gradient. `targets`: tensors
// that are not parameters but whose gradient is wanted (for gradient checks). Throws Error where a gradient flows into
// an op that has no backward.
Gradients differentiate(Graph& graph, const std::vector<std::pair<TensorId, TensorId>>& seeds,
                        const std::vector<TensorId>& targets = {});

// Of the backward pass of layers [0, layers): puts the nodes from which nothing comes but gradients of parameters behind
// all other nodes of the backward pass, in the same order. The gradients of the embedding, which come last otherwise, are
// then complete while there still is work to do. Returns how many nodes were put behind.
size_t defer_weight_gradients(Graph& graph, int layers);
// The same for all layers and what lies outside of them, and gives these nodes the phase `weights`.
// `result`: a gradient that the code around the graph takes (kNone: there is none).
void split_backward(Graph& graph, TensorId result);

}  // namespace llm
