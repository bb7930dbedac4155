// Data parallelism: what a training graph has besides where several ranks train one model together, each on its part of
// a step's samples. Between backward pass and optimizer their gradients become sums over all ranks; with ZeRO
// (Rajbhandari et al. 2020, arXiv 1910.02054) each rank then steps its own pieces of the parameters alone.
//
// A run has a number of virtual ranks, which are dealt out to the ranks that there are. The gradient is the sum over the
// virtual ranks in a fixed tree (llm/base/tree_sum.h), so it has the same bits whatever the number of ranks.
#pragma once
#include <string>
#include <vector>

#include "llm/base/tree_sum.h"
#include "llm/graph/graph.h"
#include "llm/model/mesh.h"
#include "llm/model/optimizer.h"

namespace llm {

struct DataParallel {
  int rank = 0, ranks = 1;    // those that have the same part of the model
  int64_t virtual_ranks = 1;  // at least `ranks`
  int64_t micro_steps = 1;    // of each virtual rank in a step
  // What the ranks divide among themselves: 0 nothing, 1 optimizer state, 2 gradients as well, 3 parameters as well.
  int zero = 0;
  size_t bucket_bytes = 0;  // gradients are sent when there are so many, or those of a block; 0: those of a block
  Mesh mesh = {};           // of all ranks of the run; where it is one rank alone, the run's ranks are those above
  int run_rank = 0;         // this rank's number in the mesh
  ContextExchange context_exchange = ContextExchange::gather;

  // Of a pipeline (llm/model/stages.h): the parts of the model that each stage has, and where layers are cut; whether
  // the passes towards the weights are runs of their own.
  int chunks = 1;
  std::vector<int> cuts = {};
  bool splits_backward = false;

  RankGroup group() const { return mesh.ranks() == 1 ? RankGroup{rank, ranks} : mesh.data_group(run_rank); }
  RankGroup all() const { return mesh.ranks() == 1 ? RankGroup{rank, ranks} : mesh.all(run_rank); }
  VirtualRanks mine() const { return virtual_ranks_of(rank, ranks, virtual_ranks); }
  // As the ranks have it whose keys and values go round with this one's, itself included; empty: there is no ring.
  std::vector<DataParallel> ring() const;
  bool divides_parameters() const { return ranks > 1 && zero >= 3; }
  // Whether a step has one micro-step on each rank, so that gradients need not be kept whole for a second one. (A pipeline's
  // are kept between the graphs of its parts and the one that sends them.)
  bool sends_at_once() const { return micro_steps == 1 && virtual_ranks == ranks && mesh.stage == 1; }
};

// Which part of each parameter a rank steps: bounds[p] are the first elements of all ranks' pieces of parameter p, and
// its number of elements. Matrices that Muon steps are dealt out whole, by FLOPs; of what AdamW steps each rank gets an
// equal share. Pieces begin at multiples of kGradientNormBlock.
struct Partition {
  std::vector<std::vector<int64_t>> bounds;
  int64_t first(size_t p, int rank) const { return bounds[p][static_cast<size_t>(rank)]; }
  int64_t count(size_t p, int rank) const { return first(p, rank + 1) - first(p, rank); }
};
Partition partition_of(const std::vector<Parameter>& table, OptimizerKind kind, int ranks);

// Where a step has several micro-steps, a tied head's matrix has two gradients that are added up by themselves, the head's
// by the parameter's name and the embedding's: in a pipeline they are made by different stages. The sum is made when a
// virtual rank's micro-steps are over.
std::string embedding_gradient_of(const std::string& parameter);
// Gives a graph, which autodiff has left, those two: `gradient` is that of the tied matrix. Returns the head's.
TensorId separate_embedding_gradient(Graph& graph, TensorId gradient);
// To a graph that has the head's gradient of a tied matrix, what adds the embedding's of the graph `of`, where that has one.
void add_embedding_gradients(Graph& graph, const Graph& of);

// Numbers of channels (llm/device/communicator.h). Those of one kind must be used equally often by all ranks that share any
// of them, so stages, whose graphs differ, do not share the numbers of other kinds: messages between stages come first.
inline constexpr int64_t kMostPipelineChannels = 4096;
inline constexpr int64_t kTiedHeadChannel = kMostPipelineChannels + 1, kTiedGradientChannel = kTiedHeadChannel + 1,
                         kWorldChannel = kTiedGradientChannel + 1, kStageLossChannel = kWorldChannel + 1,
                         kPartChannels = kStageLossChannel + 1,  // of a micro-batch's passes
    kStepChannels = 8192, kGatherChannels = 16384;               // of a step's end; of gathered parameters

// The names of the tensors that hold what a rank has added so far, of a gradient or the loss: number `place` waits for
// its partner in the tree.
std::string saved_sum(const std::string& name, size_t place);

// A graph that adds the embedding's gradient of a tied matrix to the head's, where the training graph `of` has them
// apart; else it has no nodes. It runs once when a virtual rank's micro-steps are over.
Graph embedding_sum_graph(const Graph& of, const std::vector<TensorId>& gradients);

// A graph that adds saved sums number `place` to gradients and loss, or, with `save`, saves these there. Its tensors are
// those of the training graph `of`, by name.
Graph fold_graph(const Graph& of, const std::vector<TensorId>& gradients, TensorId loss, size_t place, bool save);

struct Reduced {
  std::vector<Stepped> stepped;  // in the table's order
  TensorId norm, loss;           // of all ranks together
};
// Appends to a graph, which autodiff has left, the sums over all ranks. `gradients` are in the order of the table, which is
// this rank's. The sums of a block begin as soon as its gradients are there, while the backward pass goes on. Of parameters
// that tensor- or context-parallel ranks have in common, each has the gradient of its own tokens: the sums over the virtual
// ranks are added up over those ranks. `all`: the parameters of all stages, sliced as the table is.
Reduced add_reduction(Graph& graph, const std::vector<Parameter>& table, const std::vector<TensorId>& gradients,
                      TensorId loss, const DataParallel& parallel, const Partition& partition,
                      const std::vector<Parameter>& all);
// Where a rank has only pieces or slices of parameters that a graph reads whole: the graph gets a tensor for its own pieces alone, by the parameters' names. The
// pieces of a block are gathered while the block before it runs, and again before its backward pass; what is gathered
// is an activation, and so its memory is free in between. `graph` is complete.
void add_block_gathers(Graph& graph, const std::vector<Parameter>& table, const DataParallel& parallel,
                       const Partition& partition);
// Appends, behind the optimizer, what sends the stepped pieces to all ranks.
void add_parameter_gather(Graph& graph, const std::vector<Parameter>& table, const DataParallel& parallel,
                          const Partition& partition);

}  // namespace llm
