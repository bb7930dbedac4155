// Graph transformations, one file each, in the order in which `compile` applies them:
//   recompute.cpp   trades time for memory until the plan fits a budget
//   fp8.cpp         narrows the blocks' products to 8 bits, where that was asked for
//   fuse.cpp        joins neighbours that would pass a tensor through memory; for products of few rows on the GPU
//                   fuse_few_rows.cpp comes first
//   dead_code.cpp   drops nodes whose results nobody wants
//   fuse_scales.cpp has the scales of 8-bit matrices found by the kernels that write them, on the GPU
//   cast_for_cpu.cpp  puts casts around the CPU's fp32 kernels in a bf16 graph
//   pad_rows.cpp    keeps the rows of products' operands from meeting in the CPU's first cache
//   workspaces.cpp  gives each node the workspace that its kernel needs
//   memory_plan.cpp places all tensors in one arena
// But for the products in 8 bits none of them changes a result: in fp32 no bit, except by the head's fusion, and that of norms
// into products of few rows, whose sums have another order. In bf16 a fused kernel does not round between its parts, so fusion
// changes last bits, and recomputation, which leaves other neighbours to be fused, does too.
#pragma once
#include <string>
#include <vector>

#include "llm/graph/op.h"

namespace llm {

struct PassReport {
  std::string pass, detail;
  size_t nodes_before = 0, nodes_after = 0;
};

// `results` are the tensors that the program around the graph reads after a run.
PassReport remove_dead_code(Graph& graph, const std::vector<TensorId>& results);
PassReport fuse(Graph& graph, const std::vector<TensorId>& results, const Target& target);
// The part of `fuse` that is for products of few rows on a GPU, in front of the rest; gives how many nodes it joined.
int fuse_few_rows(Graph& graph, const std::vector<TensorId>& results);

// For a bf16 graph after autodiff. Throws Error for widths that 8-bit products cannot have.
PassReport narrow_to_fp8(Graph& graph);

// For a GPU's graph: what quantize would have to read a matrix for, its largest value, the kernel that writes the matrix
// finds on the way, where its op can. A maximum has no order, so no bit changes.
PassReport fuse_scales(Graph& graph);

// The CPU's kernels know fp32: each node with bf16 tensors gets a cast in front of it for every bf16 input and one behind
// it for every bf16 output. State in bf16 (the key-value cache) is held in fp32 instead: its values are rounded ones. So the
// CPU computes what a GPU does that reads bf16, computes in fp32 and rounds what it writes: the reference for bf16 runs.
// (It is slower than fp32 there, which has no casts.)
PassReport cast_for_cpu(Graph& graph);

// Rows that lie a multiple of 4 KiB apart share one set of the first-level cache, which has fewer ways than a product's tile
// has rows. On the CPU the rows of such activations are moved a cache line apart, where all ops that touch them know strides.
PassReport pad_rows(Graph& graph, const std::vector<TensorId>& results);

// After all passes that change nodes; a node that has a workspace already keeps it.
void add_workspaces(Graph& graph, const Target& target);

const char* name_of(Recompute level);

// Layers [0, layers) recompute at `level`, the others at the level before it.
struct RecomputeChoice {
  Recompute level = Recompute::none;
  int layers = 0;
};
PassReport recompute(Graph& graph, RecomputeChoice choice);

// The room a tensor takes in the arena: each starts at a multiple of 256 bytes.
inline size_t placed_bytes(size_t bytes) { return (bytes + 255) / 256 * 256; }

// When each tensor lives and where it lies. Positions are node indices; a tensor lives in [first, last], both included.
struct MemoryPlan {
  static constexpr size_t kNowhere = ~size_t{0};
  struct Lifetime {
    int first = -1, last = -1;  // -1, -1: the tensor is not used at all
  };
  std::vector<Lifetime> lifetimes;  // by tensor
  std::vector<size_t> offsets;      // by tensor, of transient ones; kNowhere for persistent ones
  std::vector<size_t> live;         // by node: bytes of the transient tensors that live there
  size_t bytes = 0;                 // of the arena for transient tensors
  size_t unshared_bytes = 0;        // what they would take with a place of their own each
  size_t in_place = 0;              // outputs that lie over an input
};
// share = false gives each tensor a place of its own (to show that sharing changes nothing).
MemoryPlan plan_memory(const Graph& graph, const std::vector<TensorId>& results, bool share = true);

struct CompileOptions {
  bool fuse = true;
  bool share_memory = true;
  bool pad_rows = true;
  size_t memory_budget = 0;  // bytes for persistent and transient tensors together; 0: no limit
};

struct Compiled {
  Graph graph;
  Target target;
  MemoryPlan plan;
  RecomputeChoice recomputation;
  std::vector<PassReport> reports;
  size_t persistent_bytes = 0;
};
// Throws Error when even full recomputation does not fit the budget; the message says how much would.
Compiled compile(Graph graph, const std::vector<TensorId>& results, const Target& target,
                 const CompileOptions& options = {});

}  // namespace llm
