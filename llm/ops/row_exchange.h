// Rows of a tensor (..., C) that ranks of a group share: a rank has as many as the others, those of rank 0 first. What
// tensor parallelism puts around a product whose matrix is cut (Shoeybi et al. 2019, Megatron-LM; Korthikanti et al. 2022,
// "Reducing activation recomputation", section 4.2.2, sequence parallelism): all rows are gathered in front of it, or
// each rank's products are added behind it, each row on the rank that has it. The one is the other's backward pass.
// Context parallelism gathers the keys and values of whole sequences in the same way.
#pragma once
#include "llm/base/bf16.h"
#include "llm/base/rank_group.h"
#include "llm/graph/graph.h"

namespace llm {

// own rows (b, t, C), of any type -> all rows (B, T, C): those of all ranks, in their order; the shape is `all`.
TensorId gather_rows(Graph& graph, TensorId own, Shape all, const RankGroup& group, const std::string& name);
// partial (B, T, C), of which each rank has another -> own rows (b, t, C) of the sum over the ranks, in their order, plus
// `bias` (C), if there is one; the shape is `own`.
TensorId sum_rows(Graph& graph, TensorId partial, TensorId bias, Shape own, const RankGroup& group,
                  const std::string& name);

// The same for sequences of which each rank has two chunks (zigzag_chunks() of chunks.h):
// own rows (B, T / ranks, C) -> all rows (B, T, C), in the order of the sequences, and back.
TensorId gather_chunks(Graph& graph, TensorId own, const RankGroup& group, const std::string& name);
TensorId sum_chunks(Graph& graph, TensorId partial, const RankGroup& group, const std::string& name);

// Where the elements of a rank's own rows lie among those of all rows.
struct OwnElements {
  int64_t first;             // of all: with which the rank's first sequence begins
  int64_t sequence, more;    // own elements of a sequence; how many more elements the whole sequence has
  int64_t chunk, shifts[2];  // own elements of a chunk; how far those of each chunk are moved within the sequence
  LLM_HOST_DEVICE int64_t place(int64_t own) const {
    const int64_t number = own / sequence;
    return first + own + number * more + shifts[own - number * sequence < chunk ? 0 : 1];
  }
};
// Of a node that gathers or adds rows, all of which have the shape `all`.
OwnElements own_elements(const Node& node, const Shape& all);

}  // namespace llm
