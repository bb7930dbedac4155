// What ops that talk to other ranks share (exchange.cpp, row_exchange.cpp), and what puts them into graphs.
#pragma once
#include <string>
#include <vector>

#include "llm/base/rank_group.h"
#include "llm/graph/kernel.h"
#include "llm/graph/op.h"

namespace llm {

// Attributes by which ops know their group: "rank", "ranks", "first", "stride".
Attributes group_attributes(const RankGroup& group);
RankGroup group_of(const Attributes& attributes);

// Appends the wait for an exchange that was started: what arrives is there behind it, and may then be used; `sent` (kNone:
// nothing) stays as it is until then.
std::vector<TensorId> wait_for_exchange(Graph& graph, int64_t channel, std::vector<TensorId> arriving,
                                        const std::vector<TensorId>& sent, const std::string& name);

// For the rows of ops that end what another op has started: the first "arrivals" inputs, in place, are the outputs. All
// that is moved has been counted where it was started.
void infer_arrivals(Graph& graph, Node& node);
Cost cost_of_wait(const Graph& graph, const Node& node);

// Throws Error where the group of a node is not that of the rank that runs it.
Communicator& ranks_of(const KernelCall& call);

}  // namespace llm
