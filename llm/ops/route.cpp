// route: which K of the E experts take a token, and with which weights (Shazeer et al. 2017, "Outrageously large neural
// networks"): the K highest logits, and the softmax over these.
//   route: logits (B, T, E), [bias (E)] -> experts (B, T, K) int32, weights (B, T, K) fp32. Attribute: chosen K.
//     backward: (d_weights, weights, experts) -> d_logits. Attributes: experts E, and bf16, a flag: so is d_logits.
//   expert_load: experts (B, T, K) int32 -> (E), how many choices fell on each expert less the mean. Attribute: experts
//     E.
// The bias takes part in the choice alone. It balances the experts without a loss (Wang et al. 2024, arXiv 2408.15664):
// what stands in the place of its gradient is the load, against which the optimizer moves it.
#include <algorithm>

#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/router_rows.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  const Shape logits = g.shape(node.inputs[0]);
  const int64_t K = node.attributes.integer("chosen");
  if (logits.rank() != 3 || K < 1 || K > logits.last()) fail("route: ", K, " experts of logits ", logits.text());
  if (node.input(1) != kNone && g.shape(node.inputs[1]) != Shape{logits.last()})
    fail("route: bias ", g.shape(node.inputs[1]).text(), " for logits ", logits.text());
  g.add_output(node, "experts", DType::int32, {logits[0], logits[1], K});
  g.add_output(node, "weights", DType::fp32, {logits[0], logits[1], K});
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  const TensorId logits = node.inputs[0], bias = node.input(1);
  const int64_t E = g.shape(logits).last();
  gradients.contribute(logits, g.add("route_backward", {{"experts", E}, {"bf16", g.dtype(logits) == DType::bf16}},
                                     {gradients.of(node.outputs[1]), node.outputs[1], node.outputs[0]})[0]);
  if (gradients.wanted(bias)) gradients.contribute(bias, g.add("expert_load", {{"experts", E}}, {node.outputs[0]})[0]);
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 10.0 * static_cast<double>(g.shape(node.inputs[0]).elements()));
}

void cpu(const KernelCall& call) {
  const int64_t E = call.in_shape(0).last(), K = call.out_shape(0).last();
  const float *logits = call.in(0), *bias = call.in(1);
  auto* experts = call.out<int32_t>(0);
  float* weights = call.out(1);
  call.threads.for_blocks(call.in_shape(0).rows(), row_grain(8 * E * K), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      choose_experts(logits + r * E, bias, static_cast<int>(E), static_cast<int>(K), experts + r * K, weights + r * K);
  });
}

void infer_backward(Graph& g, Node& node) {
  const Shape weights = g.shape(node.inputs[1]);
  g.add_output(node, "", node.attributes.flag("bf16") ? DType::bf16 : DType::fp32,
               {weights[0], weights[1], node.attributes.integer("experts")});
}

Cost backward_cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 5.0 * static_cast<double>(g.shape(node.inputs[0]).elements()));
}

void cpu_backward(const KernelCall& call) {
  const int64_t E = call.out_shape(0).last(), K = call.in_shape(0).last();
  const float *d_weights = call.in(0), *weights = call.in(1);
  const int32_t* experts = call.in_int(2);
  float* d_logits = call.out(0);
  call.threads.for_blocks(call.in_shape(0).rows(), row_grain(E), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      choice_gradient(d_weights + r * K, weights + r * K, experts + r * K, static_cast<int>(E), static_cast<int>(K),
                      d_logits + r * E, [](float x) { return x; });
  });
}

void infer_load(Graph& g, Node& node) { g.add_output(node, "", DType::fp32, {node.attributes.integer("experts")}); }

Cost load_cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, static_cast<double>(g.shape(node.inputs[0]).elements()));
}

void cpu_load(const KernelCall& call) {
  const int64_t choices = call.in_shape(0).elements(), E = call.out_shape(0)[0];
  const int32_t* experts = call.in_int(0);
  float* load = call.out(0);
  const float mean = static_cast<float>(choices) / static_cast<float>(E);
  if (!call.accumulates(0)) std::fill_n(load, E, 0.0f);
  for (int64_t e = 0; e < E; ++e)
    load[e] += static_cast<float>(std::count(experts, experts + choices, static_cast<int32_t>(e))) - mean;
}

std::vector<Example> examples() {
  const auto example = [](Shape logits, int64_t chosen, bool bias) -> Example {
    Example e{{{"chosen", chosen}}, {{.shape = logits, .low = -3, .high = 3}}};
    if (bias) e.inputs.push_back({.shape = {logits.last()}, .low = -0.3, .high = 0.3, .differentiable = false});
    return e;
  };
  // Two logits of the last example are equal, and the better one of a pair is the first.
  Example equal = example({1, 1, 5}, 3, false);
  equal.inputs[0].values = {1, 2, -1, 2, 1.5}, equal.inputs[0].differentiable = false;
  return {example({2, 5, 8}, 2, false), example({1, 300, 37}, 4, true), example({3, 1, 3}, 3, false), equal};
}

std::vector<Example> load_examples() {
  const auto example = [](Shape experts, int64_t of) -> Example {
    return {{{"experts", of}}, {{.shape = experts, .dtype = DType::int32, .low = 0, .high = static_cast<double>(of)}}};
  };
  return {example({2, 5, 2}, 4), example({3, 500, 3}, 37), example({1, 2, 1}, 300)};
}

}  // namespace

std::vector<Op> route_ops() {
  return {{.name = "route",
           .summary = "the experts of each token, and their weights",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::route,
           .examples = examples},
          {.name = "route_backward",
           .summary = "d_logits, from the weights' gradient",
           .infer = infer_backward,
           .cost = backward_cost,
           .cpu = cpu_backward,
           .cuda = cuda::route_backward},
          {.name = "expert_load",
           .summary = "the choices that fell on each expert, less the mean",
           .infer = infer_load,
           .cost = load_cost,
           .cpu = cpu_load,
           .cuda = cuda::expert_load,
           .examples = load_examples}};
}

}  // namespace llm
