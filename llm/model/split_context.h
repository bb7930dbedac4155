// Context parallelism, as a pass over the forward graph: ranks share the tokens of each sequence (as Llama 3's training
// does: Grattafiori et al. 2024, arXiv 2407.21783, section 3.3.2). Of N ranks, rank r has of 2 N chunks of a sequence
// numbers r and 2 N - 1 - r, so that causal attention costs all of them the same. Everything goes by rows, and so by a
// rank's own tokens, but attention. Its keys and values are either gathered, those of whole sequences, which grouped
// queries make small: the rank's queries attend to those up to their own positions, and the gather's backward pass adds
// up, in the order of the ranks, what their queries make of the gradient of keys and values. Or these go round in a ring
// (llm/ops/ring_attention.h), so that a rank never has those of whole sequences.
#pragma once
#include "llm/base/rank_group.h"
#include "llm/graph/graph.h"
#include "llm/model/mesh.h"

namespace llm {

// From a forward graph of whole sequences to that of a rank. Inputs stay whole: all ranks of the group are given the
// same tokens, targets and weights, of which each takes its own. `channels`: the number of the last exchange before the
// first one here.
Graph split_context(const Graph& whole, const RankGroup& context, ContextExchange exchange, int64_t channels);

}  // namespace llm
