// Graph transformations, one file each, in the order in which `compile` applies them:
//   recompute.cpp     runs forward nodes again in the backward pass, to keep fewer activations
//   fp8.cpp           narrows the blocks' products to 8 bits, with --dtype fp8
//   fuse.cpp          joins neighbours that would pass a tensor through memory
//   fuse_few_rows.cpp the part of fuse.cpp for products of few rows on the GPU, before the rest
//   dead_code.cpp     drops nodes whose results nobody reads
//   fuse_scales.cpp   lets the GPU kernels that write a matrix find the scale of its 8-bit copy
//   cast_for_cpu.cpp  puts casts around the CPU's fp32 kernels in a bf16 graph
//   pad_rows.cpp      keeps the rows of products' operands from sharing sets of the CPU's first-level cache
//   workspaces.cpp    gives each node the workspace that its kernel needs
//   memory_plan.cpp   places all transient tensors; the places of persistent ones are PersistentLayout's (program.h)
//
// Only fp8.cpp changes results by more than rounding. In fp32 the other passes change no bit, except for two fusions
// whose sums have another order: that of the head, and that of norms into products of few rows. In bf16 a fused kernel
// does not round between its parts, so fusion changes last bits. So does recomputation, which leaves other neighbours
// to be fused.
#pragma once
#include <string>
#include <vector>

#include "llm/graph/op.h"

namespace llm {

struct PassReport {
  std::string pass, detail;
  size_t nodes_before = 0, nodes_after = 0;
};

// `results` (here and below): the tensors that the code around the graph reads after a run.
PassReport remove_dead_code(Graph& graph, const std::vector<TensorId>& results);
PassReport fuse(Graph& graph, const std::vector<TensorId>& results, const Target& target);
// The part of `fuse` for products of few rows on a GPU; returns how many nodes it joined to products.
int fuse_few_rows(Graph& graph, const std::vector<TensorId>& results);

// For a bf16 graph after autodiff. Throws Error for widths that are not multiples of 16.
PassReport narrow_to_fp8(Graph& graph);

// For a GPU's graph: the kernel that writes a matrix also finds its largest absolute value, where its op has a slot for
// that; `quantize` then reads the matrix once instead of twice. A maximum does not depend on the order, so no bit
// changes.
PassReport fuse_scales(Graph& graph);

// Most CPU kernels know fp32 alone (Op::cpu_takes_bf16): a node with bf16 tensors gets a cast in front of it for each
// bf16 input and a cast behind it for each bf16 output. State in bf16 (the key-value cache) is read and written as it is.
// So the CPU computes what a GPU computes, which reads bf16, calculates in
// fp32 and rounds what it writes: a reference for bf16 runs. It is slower than an fp32 run on the CPU, which has no
// casts. Weights that a kernel reads packed (Op::packed_input) stay as they are.
PassReport cast_for_cpu(Graph& graph);

// Rows whose distance is a multiple of 4 KiB share one set of the first-level cache, which has fewer ways than a
// product's tile has rows. Such activations get rows that are a cache line longer, where all ops that touch them take
// strides.
PassReport pad_rows(Graph& graph, const std::vector<TensorId>& results);

// To be called after all passes that change nodes. A node that already has a workspace keeps it.
void add_workspaces(Graph& graph, const Target& target);

const char* name_of(Recompute level);

// Layers [0, layers) recompute at `level`, the others at the level before it.
struct RecomputeChoice {
  Recompute level = Recompute::none;
  int layers = 0;
  friend bool operator==(const RecomputeChoice&, const RecomputeChoice&) = default;
};
PassReport recompute(Graph& graph, RecomputeChoice choice);

// The bytes that a tensor takes in the arena: each tensor starts at a multiple of 256 bytes.
inline size_t placed_bytes(size_t bytes) { return (bytes + 255) / 256 * 256; }

// When each tensor lives and where it lies. A tensor lives from node `first` to node `last`, both included; a result
// lives on to the index behind the last node.
struct MemoryPlan {
  static constexpr size_t kNowhere = ~size_t{0};
  struct Lifetime {
    int first = -1, last = -1;  // -1, -1: the tensor is not used at all
  };
  std::vector<Lifetime> lifetimes;  // by tensor
  std::vector<size_t> offsets;      // by tensor, in bytes; kNowhere for persistent and unused ones
  std::vector<size_t> live;         // by node: bytes of the transient tensors that live there
  size_t bytes = 0;                 // of all transient tensors together, with sharing
  size_t unshared_bytes = 0;        // the same if each tensor had a place of its own
  size_t in_place = 0;              // number of outputs that lie over an input
};
// share = false gives each tensor a place of its own (for the test that sharing changes no result).
MemoryPlan plan_memory(const Graph& graph, const std::vector<TensorId>& results, bool share = true);

struct CompileOptions {
  bool fuse = true;
  bool share_memory = true;
  bool pad_rows = true;
  size_t memory_budget = 0;  // bytes for persistent and transient tensors together; 0: no limit
  // Where ranks must recompute alike, what the graphs of others need.
  RecomputeChoice least = {};
  bool only_least = false;  // neither less nor more
};

struct Compiled {
  Graph graph;
  Target target;
  MemoryPlan plan;
  RecomputeChoice recomputation;
  std::vector<PassReport> reports;
  size_t persistent_bytes = 0;  // of the device; of a CPU these are all
  size_t host_bytes = 0;        // of tensors that lie in the host's memory
};
// Throws Error when no level of recomputation fits the budget; the message says how many bytes the run needs at least.
Compiled compile(Graph graph, const std::vector<TensorId>& results, const Target& target,
                 const CompileOptions& options = {});

}  // namespace llm
