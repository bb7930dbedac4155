// The inside of expert_exchange.h: the messages of a node, and its gradient.
#pragma once
#include "llm/graph/kernel.h"

namespace llm {

// Starts the exchange of a node; counts (ranks, 1, E) are in the host's memory.
void start_expert_exchange(const KernelCall& call, const int32_t* counts);

// The gradient of what was sent, from that of what the wait for an expert_exchange_start gave.
TensorId exchange_gradient(Graph& graph, const Node& wait, TensorId gradient);

}  // namespace llm
