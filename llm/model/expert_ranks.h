// Expert parallelism (Lepikhin et al. 2020, "GShard", arXiv 2006.16668; Rajbhandari et al. 2022, "DeepSpeed-MoE", arXiv
// 2201.05596), as a pass over the forward graph. Ranks that differ in Mesh::expert have some sequences of a micro-step each,
// and some of the experts of each layer: rows of tokens go to the ranks that have their experts, and what these make of them
// comes back. All else a rank computes for its own sequences, with whole parameters or its slices of them.
#pragma once
#include <vector>

#include "llm/graph/graph.h"
#include "llm/model/mesh.h"
#include "llm/model/parameters.h"

namespace llm {

// From the forward graph of B / mesh.expert sequences, with all experts, to that of a rank: inputs are those of all B
// sequences, of which it takes its own. Where ranks share a micro-step's tokens in any way, the balance loss goes by all
// their choices. `sliced`: the parameters as a rank has them. `channels`: the number of the last exchange before the first
// one here.
Graph share_experts(const Graph& forward, const std::vector<Parameter>& sliced, const Mesh& mesh, int rank,
                    int64_t channels);

}  // namespace llm
