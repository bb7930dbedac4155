// router_loss: what each token adds to the losses that keep a router even and its logits small (router_rows.h), and
// router_statistics, the sums of these and of the load for the log.
//   router_loss: logits (B, T, E), counts (E) int32 of the choices -> losses (B, T) fp32 = balance_weight balance +
//     z_weight log_sum_exp^2. The counts have no gradient.
//     backward: (d_losses, logits, counts) -> d_logits
//     Attributes of both: chosen K, balance_weight, z_weight, ranks (1): the counts are those of as many tokens on each.
//   router_statistics: logits (B, T, E), counts (E) int32 -> (E + 3), added up over the micro-steps: the counts, and
//     the
//     sums over all tokens of balance, log_sum_exp^2 and entropy. Attribute: chosen K.
// As a loss of each token it takes the weight of a token in the step's mean for its gradient, like the losses of the
// head.
#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/router_rows.h"
#include "llm/ops/router_sums.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

void check(const Graph& g, const Node& node, size_t logits) {
  if (g.shape(node.inputs[logits]).rank() != 3 ||
      g.shape(node.inputs[logits + 1]) != Shape{g.shape(node.inputs[logits])[2]})
    fail(node.op->name, ": counts ", g.shape(node.inputs[logits + 1]).text(), " for logits ",
         g.shape(node.inputs[logits]).text());
}

void infer(Graph& g, Node& node) {
  check(g, node, 0);
  const Shape logits = g.shape(node.inputs[0]);
  g.add_output(node, "", DType::fp32, {logits[0], logits[1]});
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  gradients.contribute(node.inputs[0], g.add("router_loss_backward", node.attributes,
                                             {gradients.of(node.outputs[0]), node.inputs[0], node.inputs[1]})[0]);
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 10.0 * static_cast<double>(g.shape(node.inputs[0]).elements()));
}

// One choice's part of all.
float share_of(const Shape& logits, const Node& node) {
  return 1 /
         static_cast<float>(logits.rows() * node.attributes.integer("chosen") * node.attributes.integer("ranks", 1));
}

void cpu(const KernelCall& call) {
  const int64_t E = call.in_shape(0).last();
  const float* logits = call.in(0);
  const int32_t* counts = call.in_int(1);
  float* losses = call.out(0);
  const float share = share_of(call.in_shape(0), call.node);
  const auto balance_weight = static_cast<float>(call.node.attributes.number("balance_weight"));
  const auto z_weight = static_cast<float>(call.node.attributes.number("z_weight"));
  call.threads.for_blocks(call.in_shape(0).rows(), row_grain(8 * E), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const RouterTerms t = router_terms(logits + r * E, counts, static_cast<int>(E), share);
      losses[r] = balance_weight * t.balance + z_weight * t.log_sum_exp * t.log_sum_exp;
    }
  });
}

void infer_backward(Graph& g, Node& node) {
  check(g, node, 1);
  g.add_output(node, "", g.dtype(node.inputs[1]), g.shape(node.inputs[1]));
}

Cost backward_cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 15.0 * static_cast<double>(g.shape(node.inputs[1]).elements()));
}

void cpu_backward(const KernelCall& call) {
  const int64_t E = call.in_shape(1).last();
  const float *d_losses = call.in(0), *logits = call.in(1);
  const int32_t* counts = call.in_int(2);
  float* d_logits = call.out(0);
  const float share = share_of(call.in_shape(1), call.node);
  const auto balance_weight = static_cast<float>(call.node.attributes.number("balance_weight"));
  const auto z_weight = static_cast<float>(call.node.attributes.number("z_weight"));
  call.threads.for_blocks(call.in_shape(1).rows(), row_grain(8 * E), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      router_loss_gradient(d_losses[r], logits + r * E, counts, static_cast<int>(E), share, balance_weight, z_weight,
                           d_logits + r * E, [](float x) { return x; });
  });
}

void infer_statistics(Graph& g, Node& node) {
  check(g, node, 0);
  g.tensor(g.add_output(node, "", DType::fp32, {g.shape(node.inputs[1])[0] + kRouterSums})).role = Role::accumulator;
}

size_t statistics_workspace(const Graph& g, const Node& node, const Target&) {
  return static_cast<size_t>(router_blocks(g.shape(node.inputs[0]).rows()) * kRouterSums) * sizeof(double);
}

void cpu_statistics(const KernelCall& call) {
  const int64_t E = call.in_shape(0).last(), rows = call.in_shape(0).rows();
  const float* logits = call.in(0);
  const int32_t* counts = call.in_int(1);
  auto* const sums = call.workspace<double>();  // (blocks, kRouterSums)
  const float share = share_of(call.in_shape(0), call.node);
  call.threads.for_blocks(rows, kRouterBlock, [&](int64_t begin, int64_t end) {
    double block[kRouterSums] = {};
    for (int64_t r = begin; r < end; ++r) {
      const RouterTerms t = router_terms(logits + r * E, counts, static_cast<int>(E), share);
      block[0] += static_cast<double>(t.balance);
      block[1] += static_cast<double>(t.log_sum_exp * t.log_sum_exp), block[2] += static_cast<double>(t.entropy);
    }
    std::copy_n(block, kRouterSums, sums + begin / kRouterBlock * kRouterSums);
  });
  float* const out = call.out(0);
  const bool adds = call.accumulates(0);
  for (int64_t e = 0; e < E; ++e) out[e] = (adds ? out[e] : 0.0f) + static_cast<float>(counts[e]);
  for (int64_t i = 0; i < kRouterSums; ++i) {
    double sum = adds ? static_cast<double>(out[E + i]) : 0.0;
    for (int64_t b = 0; b < router_blocks(rows); ++b) sum += sums[b * kRouterSums + i];
    out[E + i] = static_cast<float>(sum);
  }
}

Example example(Shape logits, Attributes attributes) {
  const int64_t E = logits.last(), choices = logits.rows() * attributes.integer("chosen");
  std::vector<double> counts(static_cast<size_t>(E), 0);
  for (int64_t i = 0; i < choices; ++i) counts[static_cast<size_t>(i * i % E)] += 1;
  return {std::move(attributes),
          {{.shape = logits, .low = -3, .high = 3}, {.shape = {E}, .dtype = DType::int32, .values = counts}}};
}

std::vector<Example> examples() {
  return {example({2, 5, 8}, {{"chosen", 2}, {"balance_weight", 0.5}, {"z_weight", 0.25}}),
          example({1, 300, 37}, {{"chosen", 4}, {"balance_weight", 1}, {"z_weight", 0}, {"ranks", 3}}),
          example({3, 1, 3}, {{"chosen", 3}, {"balance_weight", 0}, {"z_weight", 1}})};
}

std::vector<Example> statistics_examples() {
  return {example({2, 5, 8}, {{"chosen", 2}}), example({3, 200, 37}, {{"chosen", 4}})};
}

}  // namespace

std::vector<Op> router_loss_ops() {
  return {{.name = "router_loss",
           .summary = "what each token adds to the router's losses",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::router_loss,
           .examples = examples},
          {.name = "router_loss_backward",
           .summary = "d_logits, from these losses' gradient",
           .infer = infer_backward,
           .cost = backward_cost,
           .cpu = cpu_backward,
           .cuda = cuda::router_loss_backward},
          {.name = "router_statistics",
           .summary = "the experts' load, and sums of the router's losses and entropy",
           .infer = infer_statistics,
           .cost = cost,
           .cpu = cpu_statistics,
           .cuda = cuda::router_statistics,
           .workspace = statistics_workspace,
           .examples = statistics_examples}};
}

}  // namespace llm
