#include "llm/plan/pass_time.h"

#include <limits>
#include <string_view>

#include "llm/graph/dump.h"
#include "llm/ops/exchange.h"

namespace llm {

double head_size_of(const Graph& g, const Node& node) {
  const std::string_view name = node.op->name;
  if (!name.starts_with("attention")) return std::numeric_limits<double>::infinity();
  const int64_t heads = node.attributes.integer("heads") + 2 * node.attributes.integer("kv_heads");
  return static_cast<double>(g.shape(node.inputs[name == "attention" ? 0 : 1]).last() / heads);
}

double exchange_time(const RankGroup& group, double bytes, const Hardware& h, bool at_end) {
  if (group.is_alone()) return 0;
  const auto node = static_cast<int>(h.ranks_a_node);
  const int together = std::max(1, std::min(group.ranks, node / std::min(node, group.stride)));
  const bool is_inside = together == group.ranks;
  // Ranks on one node use their shares of the network together.
  const double rate = is_inside ? h.inside_gbs : std::min(h.inside_gbs, h.between_gbs * together);
  const double latency = is_inside ? h.inside_latency_us : at_end ? h.reduce_latency_us : h.between_latency_us;
  return bytes / (rate * 1e9) + group.ranks * latency * 1e-6;
}

PassTime time_of(const Graph& graph, const Node& node, const Hardware& h, bool messages_between_nodes) {
  const Cost cost = cost_of(graph, node);
  PassTime time;
  if (std::string_view(node.op->name).ends_with("_start")) {
    if (!node.attributes.has("ranks")) {  // a copy from or to the host's memory
      time.exchange = (cost.bytes_read + cost.bytes_written) / 2 / (h.host_gbs * 1e9);
      return time;
    }
    const RankGroup group = group_of(node.attributes);
    time.exchange = exchange_time(group, cost.bytes_sent, h, !kMicroStep.contain(node.phase));
    time.host = (h.exchange_host_us + (messages_between_nodes ? group.ranks * h.beside_messages_us : 0)) * 1e-6;
    return time;
  }
  const double bytes = cost.bytes_read + cost.bytes_written;
  if (cost.flops == 0 && bytes == 0) return time;
  if (std::string_view(node.op->name) == "sum_partials") {  // other programs' exchanges add as they go
    time.exchange = bytes / (h.bandwidth_gbs * 1e9);
    return time;
  }
  double others = cost.flops;
  const double peak = h.peak_tflops * 1e12;
  for (const Product& p : products_of(graph, node)) {
    const double flops = 2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k) *
                         static_cast<double>(p.calls);
    time.device += flops / (peak * h.product_efficiency) * (1 + h.product_depth / static_cast<double>(p.k));
    others -= flops;
  }
  const double bandwidth = bytes > h.cache_mib * 0x1p20 ? h.bandwidth_gbs : h.cached_gbs;
  const double depth = h.attention_depth / head_size_of(graph, node);
  time.device += std::max(0.0, others) / (peak * h.attention_efficiency) * (1 + depth) + bytes / (bandwidth * 1e9) +
                 h.kernel_us * 1e-6;
  if (std::string_view(node.op->name) == "head_loss")
    time.device +=
        static_cast<double>(graph.shape(node.inputs[0]).rows() * graph.shape(node.inputs[1])[0]) * h.logit_ps * 1e-12;
  time.host = h.launch_us * 1e-6;
  return time;
}

}  // namespace llm
