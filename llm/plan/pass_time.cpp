#include "llm/plan/pass_time.h"

#include <algorithm>
#include <string_view>

#include "llm/base/error.h"
#include "llm/graph/dump.h"
#include "llm/ops/exchange.h"

namespace llm {

std::string kind_of(const Node& node) {
  return concat(node.op->name, node.attributes.has("symmetric") ? " symmetric" : "");
}

NodeWork work_of(const Graph& g, const Node& node) {
  const Cost cost = cost_of(g, node);
  NodeWork work{.others = cost.flops, .bytes = cost.bytes_read + cost.bytes_written};
  for (const Product& p : products_of(g, node)) {
    const double flops = p.flops() * static_cast<double>(p.calls);
    work.products += flops, work.products_by_depth += flops / static_cast<double>(p.k);
    work.others -= flops;
  }
  work.others = std::max(0.0, work.others);
  if (std::string_view(node.op->name).starts_with("attention"))
    work.others_by_head_size = work.others / static_cast<double>(node.attributes.integer("head_size"));
  return work;
}

double exchange_time(const RankGroup& group, double bytes, const Hardware& h, bool at_end, int messages) {
  if (group.is_alone()) return 0;
  const auto node = static_cast<int>(h.ranks_a_node);
  const int together = std::max(1, std::min(group.ranks, node / std::min(node, group.stride)));
  const bool is_inside = together == group.ranks;
  // Ranks on one node use their shares of the network together.
  const double between = at_end && h.reduce_gbs > 0 ? h.reduce_gbs : h.between_gbs;
  const double rate = is_inside ? h.inside_gbs : std::min(h.inside_gbs, between * together);
  const double latency = is_inside ? h.inside_latency_us : at_end ? h.reduce_latency_us : h.between_latency_us;
  // A step's end waits once for each node; exchanges within a pass, which wait for each other, for each rank.
  const int waits = messages ? messages : at_end && !is_inside ? group.ranks / together : group.ranks;
  return bytes / (rate * 1e9) + waits * latency * 1e-6;
}

PassTime time_of(const Graph& graph, const Node& node, const Hardware& h, bool messages_between_nodes) {
  const Cost cost = cost_of(graph, node);
  if (std::string_view(node.op->name).ends_with("_start")) {
    if (!node.attributes.has("ranks"))  // a copy from or to the host's memory
      return {.exchange = (cost.bytes_read + cost.bytes_written) / 2 / (h.host_gbs * 1e9)};
    const RankGroup group = group_of(node.attributes);
    const int messages = node.op->name == std::string_view("ring_shift_start") ? 1 : 0;
    PassTime time{.exchange = exchange_time(group, cost.bytes_sent, h, !kMicroStep.contain(node.phase), messages),
                  .host = h.exchange_host_us * 1e-6};
    if (messages_between_nodes && h.beside_messages_us > 0)
      time.host += group.ranks * h.beside_messages_us * 1e-6 + exchange_time(group, 0, h, false, messages);
    return time;
  }
  const NodeWork work = work_of(graph, node);
  if (cost.flops == 0 && work.bytes == 0) return {};
  if (std::string_view(node.op->name) == "sum_partials")  // other programs' exchanges add as they go
    return {.exchange = work.bytes / (h.bandwidth_gbs * 1e9)};
  if (const auto op = h.ops.find(kind_of(node)); op != h.ops.end())
    return {.device = cost.flops * op->second.flop_ps * 1e-12 + work.bytes * op->second.byte_ps * 1e-12 +
                      op->second.node_us * 1e-6,
            .host = h.launch_us * 1e-6};
  const double peak = h.peak_tflops * 1e12;
  const double bandwidth = work.bytes > h.cache_mib * 0x1p20 ? h.bandwidth_gbs : h.cached_gbs;
  PassTime time;
  time.device = (work.products + h.product_depth * work.products_by_depth) / (peak * h.product_efficiency) +
                (work.others + h.attention_depth * work.others_by_head_size) / (peak * h.attention_efficiency) +
                work.bytes / (bandwidth * 1e9) + h.kernel_us * 1e-6;
  if (std::string_view(node.op->name) == "head_loss")
    time.device +=
        static_cast<double>(graph.shape(node.inputs[0]).rows() * graph.shape(node.inputs[1])[0]) * h.logit_ps * 1e-12;
  time.host = h.launch_us * 1e-6;
  return time;
}

}  // namespace llm
