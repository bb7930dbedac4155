// The time of the nodes of a compiled graph on a machine, from the cost column of the op table and a machine's numbers.
#pragma once
#include <algorithm>

#include "llm/base/rank_group.h"
#include "llm/device/hardware.h"
#include "llm/graph/passes.h"

namespace llm {

// Seconds of some nodes, run once. They pass as the longer of what the device and what the host takes.
struct PassTime {
  double device = 0;    // kernels
  double exchange = 0;  // with other ranks, while no kernel runs
  double host = 0;      // the host's time to hand over the kernels

  double total() const { return std::max(device + exchange, host); }
  double compute() const { return std::max(device, host); }  // the same without the exchanges
  PassTime& operator+=(const PassTime& other) {
    device += other.device, exchange += other.exchange, host += other.host;
    return *this;
  }
};

// `messages_between_nodes`: the node belongs to a pipeline whose messages go from node to node.
PassTime time_of(const Graph& graph, const Node& node, const Hardware& hardware, bool messages_between_nodes = false);

// Of an attention; infinite for other ops.
double head_size_of(const Graph& graph, const Node& node);

// Seconds for `bytes` from each rank of a group to others of it, within a pass or at a step's end.
double exchange_time(const RankGroup& group, double bytes, const Hardware& hardware, bool at_end = false);

}  // namespace llm
