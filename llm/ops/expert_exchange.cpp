// The nodes of expert_exchange.h.
//   expert_counts           counts -> those of this rank's experts, and all ranks' together
//   expert_exchange_start   rows, counts -> rows, which are there after the wait. Its wait has a gradient: the other way.
//                           Attributes: "rows" of the result; "back", a flag: from the experts.
// Attributes of both: those of the group of ranks that share the experts, "first_row" and "row_distance".
#include "llm/ops/expert_exchange.h"

#include <algorithm>

#include "llm/device/communicator.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/exchange.h"
#include "llm/ops/expert_messages.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

Attributes attributes_of(const ExpertRanks& experts) {
  Attributes a = group_attributes(experts.group);
  a.set("first_row", experts.first_row), a.set("row_distance", experts.row_distance);
  return a;
}

void check_counts(const Graph& g, const Node& node, const Shape& counts) {
  const RankGroup group = group_of(node.attributes);
  const int64_t last =
      node.attributes.integer("first_row") + (group.ranks - 1) * node.attributes.integer("row_distance");
  if (counts.rank() != 3 || last >= counts.rows() || counts.last() % group.ranks)
    fail(node.op->name, ": counts ", counts.text(), " of the experts of ", group.ranks, " ranks");
  if (g.dtype(node.inputs.back()) != DType::int32) fail(node.op->name, ": counts are int32");
}

void infer_counts(Graph& g, Node& node) {
  const Shape counts = g.shape(node.inputs[0]);
  check_counts(g, node, counts);
  g.add_output(node, "own", DType::int32, {counts.last() / group_of(node.attributes).ranks});
  g.add_output(node, "all", DType::int32, {counts.last()});
}

Cost cost_of_counts(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 2.0 * static_cast<double>(g.shape(node.inputs[0]).elements()));
}

void cpu_counts(const KernelCall& call) {
  const RankGroup group = group_of(call.node.attributes);
  const int64_t E = call.in_shape(0).last(), own = E / group.ranks;
  const int64_t first = call.node.attributes.integer("first_row");
  const int64_t distance = call.node.attributes.integer("row_distance");
  const int32_t* counts = call.in_int(0);
  auto *mine = call.out<int32_t>(0), *all = call.out<int32_t>(1);
  std::fill_n(mine, own, 0), std::fill_n(all, E, 0);
  for (int64_t row = 0; row < call.in_shape(0).rows(); ++row)
    for (int64_t e = 0; e < E; ++e) all[e] += counts[row * E + e];
  for (int64_t r = 0; r < group.ranks; ++r)
    for (int64_t e = 0; e < own; ++e) mine[e] += counts[(first + r * distance) * E + group.rank * own + e];
}

void infer_exchange(Graph& g, Node& node) {
  const Shape rows = g.shape(node.inputs[0]);
  check_counts(g, node, g.shape(node.inputs[1]));
  if (rows.rank() != 3 || rows[0] != 1 || g.dtype(node.inputs[0]) == DType::int32)
    fail("expert_exchange_start: rows ", rows.text(), " are not (1, n, C) in fp32 or bf16");
  g.add_output(node, "", g.dtype(node.inputs[0]), {1, node.attributes.integer("rows"), rows.last()});
}

// Of choices that fall on all experts alike, and no more rows than this rank's choices.
Cost cost_of_exchange(const Graph& g, const Node& node) {
  const double rows = static_cast<double>(std::min(g.shape(node.inputs[0]).rows(), node.attributes.integer("rows")));
  const double ranks = group_of(node.attributes).ranks;
  const auto row_bytes =
      static_cast<double>(g.shape(node.inputs[0]).last()) * static_cast<double>(size_of(g.dtype(node.inputs[0])));
  Cost c{0, rows * row_bytes, rows * row_bytes};
  c.bytes_sent = rows * row_bytes * (ranks - 1) / ranks;
  return c;
}

void cpu_exchange(const KernelCall& call) { start_expert_exchange(call, call.in_int(1)); }

std::vector<Example> count_examples() {
  const auto example = [](int64_t ranks, int64_t rank, int64_t rows, int64_t E, int64_t first, int64_t distance) {
    return Example{{{"rank", rank}, {"ranks", ranks}, {"first_row", first}, {"row_distance", distance}},
                   {{.shape = {rows, 1, E}, .dtype = DType::int32, .low = 0, .high = 9}}};
  };
  return {example(2, 1, 2, 8, 0, 1), example(2, 0, 6, 6, 2, 3), example(1, 0, 3, 300, 1, 1)};
}

TensorId exchange_rows(Graph& g, TensorId rows, TensorId counts, int64_t of_result, Attributes a,
                       const std::string& name) {
  a.set("channel", ++g.channels);
  a.set("rows", of_result);
  const TensorId arriving = g.add("expert_exchange_start", a, {rows, counts}, name + ".start")[0];
  a.set("arrivals", int64_t{1});
  return g.add("exchange_wait", a, {arriving, rows, counts}, name)[0];
}

}  // namespace

void start_expert_exchange(const KernelCall& call, const int32_t* counts) {
  const Attributes& a = call.node.attributes;
  const RankGroup group = group_of(a);
  const int64_t E = call.in_shape(1).last(), own = E / group.ranks;
  const auto count = [&](int64_t rank, int64_t e) {
    return int64_t{counts[(a.integer("first_row") + rank * a.integer("row_distance")) * E + e]};
  };
  Communicator& ranks = ranks_of(call);
  const auto channel = static_cast<int>(a.integer("channel"));
  Exchange& exchange = ranks.prepare(channel);
  const size_t row_bytes = static_cast<size_t>(call.in_shape(0).last()) * size_of(call.in_dtype(0));
  // Rows by expert, of which this rank chose some; and rows by this rank's experts, whoever chose them.
  const auto chosen = [&](std::vector<Message>& messages, std::byte* rows) {
    for (int64_t e = 0; e < E; ++e) {
      const size_t bytes = static_cast<size_t>(count(group.rank, e)) * row_bytes;
      if (bytes) messages.push_back({group.in_run(static_cast<int>(e / own)), rows, bytes});
      rows += bytes;
    }
  };
  const auto served = [&](std::vector<Message>& messages, std::byte* rows) {
    for (int64_t e = group.rank * own; e < (group.rank + 1) * own; ++e)
      for (int r = 0; r < group.ranks; ++r) {
        const size_t bytes = static_cast<size_t>(count(r, e)) * row_bytes;
        if (bytes) messages.push_back({group.in_run(r), rows, bytes});
        rows += bytes;
      }
  };
  auto *const from = const_cast<std::byte*>(call.in<std::byte>(0)), *const to = call.out<std::byte>(0);
  if (a.flag("back"))
    served(exchange.sends, from), chosen(exchange.receives, to);
  else
    chosen(exchange.sends, from), served(exchange.receives, to);
  ranks.start(channel);
}

TensorId exchange_gradient(Graph& g, const Node& wait, TensorId gradient) {
  Attributes a = wait.attributes;
  a.set("back", !a.flag("back"));
  return exchange_rows(g, gradient, wait.inputs[2], g.shape(wait.inputs[1]).rows(), a,
                       g.tensor(wait.inputs[1]).name + ".grad");
}

std::vector<TensorId> add_expert_counts(Graph& g, TensorId counts, const ExpertRanks& experts,
                                        const std::string& name) {
  return g.add("expert_counts", attributes_of(experts), {counts}, name);
}

TensorId send_to_experts(Graph& g, TensorId rows, TensorId counts, int64_t most, const ExpertRanks& experts,
                         const std::string& name) {
  return exchange_rows(g, rows, counts, most, attributes_of(experts), name);
}

TensorId send_back(Graph& g, TensorId rows, TensorId counts, int64_t n, const ExpertRanks& experts,
                   const std::string& name) {
  Attributes a = attributes_of(experts);
  a.set("back", true);
  return exchange_rows(g, rows, counts, n, a, name);
}

std::vector<Op> expert_exchange_ops() {
  return {{.name = "expert_counts",
           .summary = "how many rows ranks send to this rank's experts, and to each",
           .infer = infer_counts,
           .cost = cost_of_counts,
           .cpu = cpu_counts,
           .cuda = cuda::expert_counts,
           .examples = count_examples},
          {.name = "expert_exchange_start",
           .summary = "sends tokens' rows to the ranks that have their experts, or back",
           .infer = infer_exchange,
           .cost = cost_of_exchange,
           .cpu = cpu_exchange,
           .cuda = cuda::expert_exchange,
           .cpu_takes_bf16 = true,
           .waits_for_device = true}};
}

}  // namespace llm
