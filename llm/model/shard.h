// Tensor parallelism with sequence parallelism (Shoeybi et al. 2019, arXiv 1909.08053; Korthikanti et al. 2022, arXiv
// 2205.05198), as a pass over the forward graph. The parameter table says how a block's matrices are cut: qkv, mlp_in and
// their biases by rows, within each matrix that is joined in them, so that a rank has whole heads and pairs of gate and up;
// attention_out and mlp_out by columns. In between, a rank computes with its slices and all tokens. Outside, where
// parameters are whole on every rank, it has its own share of the tokens: embedding, norms, residual stream, head and
// losses. All rows are gathered in front of the one kind of product, and summed and shared out behind the other.
#pragma once
#include <vector>

#include "llm/graph/graph.h"
#include "llm/model/mesh.h"
#include "llm/model/parameters.h"
#include "llm/ops/copy_parts.h"

namespace llm {

// Throws UsageError, which says what would do, where the mesh does not divide the model or a micro-step of
// `batch` x `tokens`.
void check_mesh(const Mesh& mesh, const ModelConfig& config, int64_t batch, int64_t tokens);

// The parameters of a whole model as a rank has them: slices of those that are cut. In the same order.
std::vector<Parameter> sliced_table(const std::vector<Parameter>& table, const Mesh& mesh);

// The table entry of the whole parameter, of which `sliced` is a slice's.
Parameter whole_of(const Parameter& sliced);

// The ranks that have the slices of a parameter, and of these the slice that a place has.
inline RankGroup slice_group(const Parameter& p, const Mesh& mesh, int rank) {
  return p.experts ? mesh.expert_group(rank) : mesh.tensor_group(rank);
}
inline int slice_at(const Parameter& p, const Mesh::Place& place) { return p.experts ? place.expert : place.tensor; }

// The rectangles of a whole parameter that make up slice number `slice` of it. `once`: but for those that an earlier slice
// has as well.
std::vector<CopiedPart> parts_of_slice(const Parameter& whole, int slices, int slice, bool once = false);

// Of a sliced parameter whose ranks have rows in common (Parameter::shares_rows): the first element of these in a slice,
// where all elements behind it are shared as well; and the ranks that have the same.
int64_t first_shared(const Parameter& sliced);
RankGroup sharing_group(const Parameter& sliced, const Mesh& mesh, int rank);

// From a forward graph of a whole model to that of a rank. Inputs stay whole: all ranks of the group are given the same
// tokens, targets and weights. `channels`: the number of the last exchange before the first one here.
Graph shard(const Graph& whole, const std::vector<Parameter>& sliced, const RankGroup& tensor, int64_t channels);

}  // namespace llm
