// Attention of queries to the keys and values of all ranks that share their sequences, which go round in a ring (Liu,
// Zaharia and Abbeel 2023, "Ring attention with blockwise transformers", arXiv 2310.01889): a rank has its own, those
// that it attends to, and those that it receives meanwhile, however many ranks there are. Of each sequence a rank has two
// chunks (zigzag_chunks() of chunks.h).
//
// In step s rank r has the keys of rank p = r + s, counted round. They are sent on to rank r - 1 while r's queries attend
// to them. Of its own keys a query sees those up to its own position. Keys of a later rank p > r lie, both chunks, in
// front of the second chunk of r's queries and behind the first. Of an earlier rank's, p < r, the first chunk lies in
// front of all of r's queries, the second behind them; so only the first goes on from rank 0, behind which all are such.
// Each step is thus the same work on all ranks, half the pairs of a query and a key, and none is masked. What the steps
// give is merged by log(sum(exp)).
//
// The backward pass goes by the final output and the final log_sum_exp (Dao 2023, FlashAttention-2), so of a step nothing
// is kept: keys and values go round again. The gradient of queries is added up where they are; the gradient of keys and
// values travels with these, each rank adding its part to what it receives, until they are back at their owner.
#pragma once
#include <string>
#include <vector>

#include "llm/base/rank_group.h"
#include "llm/graph/graph.h"

namespace llm {

// From the document starts (B, T) of whole sequences to those of the attention of each step; kNone -> no starts.
std::vector<TensorId> add_ring_starts(Graph& graph, TensorId starts, const RankGroup& group);

// queries (B, T / ranks, H D), keys_values (B, T / ranks, 2 K D) -> out (B, T / ranks, H D), log_sum_exp (B, H, T /
// ranks), as the op attention has them. `heads`: its attributes heads, kv_heads and head_size.
std::vector<TensorId> add_ring_attention(Graph& graph, const Attributes& heads, TensorId queries, TensorId keys_values,
                                         const std::vector<TensorId>& starts, const RankGroup& group,
                                         const std::string& name);

}  // namespace llm
