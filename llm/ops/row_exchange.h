// Rows of a tensor (..., C) that ranks of a group share: a rank has as many as the others, those of rank 0 first. What
// tensor parallelism puts around a product whose matrix is cut (Shoeybi et al. 2019, Megatron-LM; Korthikanti et al. 2022,
// "Reducing activation recomputation", section 4.2.2, sequence parallelism): all rows are gathered in front of it, or
// each rank's products are added behind it, each row on the rank that has it. The one is the other's backward pass.
#pragma once
#include "llm/base/rank_group.h"
#include "llm/graph/graph.h"

namespace llm {

// own rows (b, t, C), of any type -> all rows (B, T, C): those of all ranks, in their order; the shape is `all`.
TensorId gather_rows(Graph& graph, TensorId own, Shape all, const RankGroup& group, const std::string& name);
// partial (B, T, C), of which each rank has another -> own rows (b, t, C) of the sum over the ranks, in their order, plus
// `bias` (C), if there is one; the shape is `own`.
TensorId sum_rows(Graph& graph, TensorId partial, TensorId bias, Shape own, const RankGroup& group,
                  const std::string& name);

}  // namespace llm
