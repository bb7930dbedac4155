// The time of the nodes of a compiled graph on a machine, from the cost column of the op table and a machine's numbers.
#pragma once
#include <algorithm>
#include <string>

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

// The op and how it is done, where that makes a difference: products whose results are symmetric make half of them.
std::string kind_of(const Node& node);

// What a node does, in the units of a machine's numbers (llm/device/hardware.h).
struct NodeWork {
  double products = 0, products_by_depth = 0;  // FLOPs of its matrix products; of each, over its depth k
  double others = 0, others_by_head_size = 0;  // other FLOPs; of an attention, over its head size
  double bytes = 0;                            // read and written
};
NodeWork work_of(const Graph& graph, const Node& node);

// Seconds for `bytes` from each rank of a group to others of it, within a pass or at a step's end, in so many messages (0: one
// to each).
double exchange_time(const RankGroup& group, double bytes, const Hardware& hardware, bool at_end = false,
                     int messages = 0);

}  // namespace llm
