// Muon where tensor-parallel ranks have slices of matrices. A matrix's step needs it whole, so each matrix has an owner
// among these ranks, which gets the others' slices of the gradient, has the whole momentum, and sends the orthogonal
// update to all, of which each applies its slice.
#pragma once
#include <vector>

#include "llm/graph/graph.h"
#include "llm/model/optimizer.h"
#include "llm/model/shard.h"

namespace llm {

// By parameter of a sliced table: the tensor-parallel rank that has its momentum; -1 where it is not cut, or not Muon's.
std::vector<int> muon_owners(const std::vector<Parameter>& sliced, OptimizerKind kind, int tensor_ranks);

// What one rank steps of a parameter that is cut: its own experts' matrices, or all of a matrix.
inline Parameter stepped_by_muon(const Parameter& sliced) { return sliced.experts ? sliced : whole_of(sliced); }

struct SlicedMatrix {
  const Parameter* slice;  // its table entry
  int owner;
  TensorId gradient;  // of the slice, fp32
};
// (`channel`: that of the exchange.) The whole gradients of the matrices that this rank owns; kNone for the others.
std::vector<TensorId> gather_gradients(Graph& graph, const std::vector<SlicedMatrix>& matrices, const RankGroup& tensor,
                                       int64_t channel, const std::string& name);
// updates: for each matrix the parts of its update, kNone where another rank owns it -> this rank's slice of each part.
std::vector<TensorId> share_updates(Graph& graph, const std::vector<SlicedMatrix>& matrices,
                                    const std::vector<std::vector<TensorId>>& updates, bool bf16,
                                    const RankGroup& tensor, int64_t channel, const std::string& name);

}  // namespace llm
