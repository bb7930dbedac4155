// Prints a compiled graph for people and for other programs: the nodes in order, what they cost, and when and where
// each tensor lives. Nothing is allocated for the tensors.
#pragma once
#include <iosfwd>
#include <string>
#include <vector>

#include "llm/graph/graph.h"
#include "llm/graph/op.h"
#include "llm/graph/passes.h"

namespace llm {

struct DumpOptions {
  bool all = false;  // print also the layers that are like the layer before them
  size_t width = 0;  // columns that the text's table may take; 0: as many as it needs
};

// Totals, a line for each pass, a table of the nodes in order, and the curve of the transient memory.
void dump_text(std::ostream& out, const Compiled& compiled, const DumpOptions& options = {});
// For Graphviz: a box for each node, clustered by layer, coloured by phase; an edge for each transient tensor that
// passes from one node to another.
void dump_dot(std::ostream& out, const Compiled& compiled, const DumpOptions& options = {});
// All tensors, nodes, costs, lifetimes and offsets; bytes and FLOPs are not rounded.
void dump_json(std::ostream& out, const Compiled& compiled);

// The bytes that the persistent tensors of a role take in the arena, each rounded up to a multiple of 256.
size_t persistent_bytes(const Compiled& compiled, Role role);
double flops_of(const Graph& graph, Phase phase);
double bytes_sent_of(const Graph& graph);  // to other ranks, in a step of one micro-step
TensorId first_output(const Node& node);   // the first that is not absent; kNone if there is none

// The cost of a node; zeros for an op without a cost function.
Cost cost_of(const Graph& graph, const Node& node);
// The op with those of its attributes that distinguish the node from others of the op: "linear activation=gelu". The
// attributes alone are what follows the first blank.
std::string describe(const Node& node);
// The transformer block that a node belongs to, -1 for none. An optimizer's node has the block of its first output.
int layer_of(const Graph& graph, const Node& node);

// A run of layers whose nodes of one phase are the same except for names; only the first layer of a run need be shown.
struct FoldedLayers {
  Phase phase = Phase::forward;
  int shown = 0, last = 0;    // layers shown + 1 to last are like layer `shown`
  std::vector<size_t> nodes;  // the indices of the nodes of layers shown + 1 to last, in order
  std::string text() const;   // "layers 2 to 11 as layer 1"
};
std::vector<FoldedLayers> fold_layers(const Graph& graph);
// For each node the run in which it is left out; null for the nodes that are shown.
std::vector<const FoldedLayers*> runs_by_node(const Graph& graph, const std::vector<FoldedLayers>& folded);

}  // namespace llm
