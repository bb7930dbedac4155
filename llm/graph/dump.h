// A compiled graph for people and for other programs: what runs in which order, what it costs, and when each tensor lives
// where. Nothing here needs the memory that it talks about.
#pragma once
#include <iosfwd>
#include <string>
#include <vector>

#include "llm/graph/graph.h"
#include "llm/graph/op.h"
#include "llm/graph/passes.h"

namespace llm {

struct DumpOptions {
  bool all = false;  // also the layers that are just like the layer before them
};

// Sums, one line a pass, a table of the nodes in order, and the curve of the transient memory.
void dump_text(std::ostream& out, const Compiled& compiled, const DumpOptions& options = {});
// For Graphviz: a box a node, clustered by layer, coloured by phase; an edge for each tensor that passes between nodes.
void dump_dot(std::ostream& out, const Compiled& compiled, const DumpOptions& options = {});
// All tensors, nodes, costs, lifetimes and offsets; bytes and FLOPs are exact numbers.
void dump_json(std::ostream& out, const Compiled& compiled);

// Bytes of the persistent tensors of a role, as the arena has them: each on a boundary of 256.
size_t persistent_bytes(const Graph& graph, Role role);
double flops_of(const Graph& graph, Phase phase);
TensorId first_output(const Node& node);  // the first that is there

// What a node costs (zeros for an op without a cost function).
Cost cost_of(const Graph& graph, const Node& node);
// "linear activation=gelu": the op with those of its attributes that tell it from others of its kind.
std::string describe(const Node& node);
// The transformer block a node belongs to. An optimizer's nodes stand outside the blocks, but their tensors do not.
int layer_of(const Graph& graph, const Node& node);

// Runs of layers whose nodes of one phase are the same but for names. Of each run only the first layer need be shown.
struct FoldedLayers {
  Phase phase = Phase::forward;
  int shown = 0, last = 0;    // layers shown + 1 to last are like layer `shown`
  std::vector<size_t> nodes;  // theirs, in order
  std::string text() const;   // "layers 2 to 11 as layer 1"
};
std::vector<FoldedLayers> fold_layers(const Graph& graph);
// By node: the run in which it is left out; null for the nodes that are shown.
std::vector<const FoldedLayers*> runs_by_node(const Graph& graph, const std::vector<FoldedLayers>& folded);

}  // namespace llm
