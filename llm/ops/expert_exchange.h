// Rows of tokens on their way between ranks that share a layer's experts: rank r of N has the experts [r E/N, (r+1) E/N)
// (Lepikhin et al. 2020, "GShard", arXiv 2006.16668, section 3.2, without its limit on an expert's tokens). How many rows
// go where is data: all ranks know the choices of all (`counts`), so both ends of a message know its size. The way back is
// the way there with the ends exchanged, and each is the other's backward pass.
#pragma once
#include "llm/base/rank_group.h"
#include "llm/graph/graph.h"

namespace llm {

// Who has which experts, and where the counts of these ranks' choices lie.
struct ExpertRanks {
  RankGroup group;                          // the ranks that share the experts
  int64_t first_row = 0, row_distance = 1;  // rank r's counts are row first_row + r row_distance of `counts`
};

// counts (ranks, 1, E) int32, of the choices of all ranks that share a micro-step's tokens ->
//   [0] of this rank's experts: the rows that all ranks of `experts` send (E/N)
//   [1] of all ranks' choices together (E)
std::vector<TensorId> add_expert_counts(Graph& graph, TensorId counts, const ExpertRanks& experts,
                                        const std::string& name);
// rows (1, n, C) of this rank's choices, sorted by expert -> (1, most, C): the rows that all ranks send to this rank's
// experts, sorted by expert and within one by rank. Behind them lies whatever was there.
TensorId send_to_experts(Graph& graph, TensorId rows, TensorId counts, int64_t most, const ExpertRanks& experts,
                         const std::string& name);
// What became of these rows (1, most, C) -> (1, n, C), each where its choice was.
TensorId send_back(Graph& graph, TensorId rows, TensorId counts, int64_t n, const ExpertRanks& experts,
                   const std::string& name);

}  // namespace llm
