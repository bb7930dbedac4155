#include "llm/train/trace.h"

#include "llm/base/atomic_file.h"
#include "llm/base/json.h"
#include "llm/graph/op.h"

namespace llm {

std::string trace_events(const Graph& graph, const std::vector<NodeTime>& times, double begin, int rank) {
  std::string events =
      Json({{"name", "process_name"}, {"ph", "M"}, {"pid", rank}, {"args", {{"name", concat("rank ", rank)}}}}).dump() +
      ",\n";
  const auto microseconds = [&](double seconds) { return (seconds - begin) * 1e6; };
  for (const NodeTime& time : times) {
    const Node& node = graph.nodes[time.node];
    const Cost cost = node.op->cost(graph, node);
    events += Json({{"name", node.op->name},
                    {"cat", name_of(node.phase)},
                    {"ph", "X"},
                    {"pid", rank},
                    {"tid", 0},
                    {"ts", microseconds(time.begin)},
                    {"dur", (time.end - time.begin) * 1e6},
                    {"args",
                     {{"layer", node.layer},
                      {"flops", cost.flops},
                      {"bytes", cost.bytes_read + cost.bytes_written},
                      {"bytes_sent", cost.bytes_sent}}}})
                  .dump() +
              ",\n";
    if (!node.attributes.has("channel") || node.op->name == std::string_view("ordered_sum")) continue;
    const int64_t channel = node.attributes.integer("channel");
    const bool is_wait = std::string_view(node.op->name) == "exchange_wait";
    events += Json({{"name", concat("exchange ", channel)},
                    {"cat", "exchange"},
                    {"ph", is_wait ? "e" : "b"},
                    {"id", concat(rank, ".", channel)},
                    {"pid", rank},
                    {"tid", 1},
                    {"ts", microseconds(is_wait ? time.end : time.begin)},
                    {"args", {{"bytes_sent", cost.bytes_sent}}}})
                  .dump() +
              ",\n";
  }
  return events;
}

std::string pass_events(const std::vector<Pipeline::PassTime>& passes, double begin, int rank) {
  std::string events;
  for (const Pipeline::PassTime& pass : passes) {
    const PipelineAction& a = pass.action;
    events += Json({{"name", concat(name_of(a.pass), " ", a.micro)},
                    {"cat", "pass"},
                    {"ph", "X"},
                    {"pid", rank},
                    {"tid", 2},
                    {"ts", (pass.begin - begin) * 1e6},
                    {"dur", (pass.end - pass.begin) * 1e6},
                    {"args", {{"chunk", a.chunk}, {"micro_batch", a.micro}}}})
                  .dump() +
              ",\n";
  }
  return events;
}

void write_trace(const std::string& path, const std::string& events, Communicator* ranks) {
  std::string all;
  if (!ranks) {
    all = events;
  } else {
    for (const std::string& each : all_gather(*ranks, events)) all += each;
    if (ranks->rank() != 0) return;
  }
  all.resize(all.rfind(','));
  write_file_atomically(path, "{\"traceEvents\": [\n" + all + "\n]}\n");
}

}  // namespace llm
