// expert_order: sorts the choices of a router by their experts, so that each expert's rows lie together, however many
// there are: no token is dropped and none is padded (Gale et al. 2022, "MegaBlocks").
//   experts (B, T, K) int32 -> order (N) int32, place (B, T, K) int32, counts (E) int32, with N = B T K. Attribute:
//     experts E.
// Row r of the sorted rows is choice order[r], of token order[r] / K; choice i is row place[i]. Expert e has counts[e]
// rows, behind those of the experts before it. Choices of one expert keep their order. A choice below 0 is of no
// expert: it comes behind all others and is not counted.
#include <algorithm>

#include "llm/ops/cuda_kernels.h"
#include "llm/ops/expert_blocks.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  const Shape experts = g.shape(node.inputs[0]);
  if (node.attributes.integer("experts") >= kMostOrdered)
    fail("expert_order: ", node.attributes.integer("experts"), " experts, but at most ", kMostOrdered - 1);
  g.add_output(node, "order", DType::int32, {experts.elements()});
  g.add_output(node, "place", DType::int32, experts);
  g.add_output(node, "counts", DType::int32, {node.attributes.integer("experts")});
}

// No gradient reaches it: what it gives are whole numbers.
Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 2.0 * static_cast<double>(g.shape(node.inputs[0]).elements()));
}

size_t workspace(const Graph& g, const Node& node, const Target& target) {
  const int64_t E = node.attributes.integer("experts"), N = g.shape(node.inputs[0]).elements();
  return static_cast<size_t>(target.cuda ? order_blocks_cuda(N) * (E + 1) : E + 1) * sizeof(int32_t);
}

void cpu(const KernelCall& call) {
  const int64_t N = call.in_shape(0).elements(), E = call.out_shape(2)[0];
  const int32_t* experts = call.in_int(0);
  auto *order = call.out<int32_t>(0), *place = call.out<int32_t>(1), *counts = call.out<int32_t>(2);
  auto* const next = call.workspace<int32_t>();  // (E + 1): the next row of each expert, and of none
  std::fill_n(counts, E, 0);
  for (int64_t i = 0; i < N; ++i)
    if (experts[i] >= 0) ++counts[experts[i]];
  next[0] = 0;
  for (int64_t e = 0; e < E; ++e) next[e + 1] = next[e] + counts[e];
  for (int64_t i = 0; i < N; ++i) {
    const int32_t row = next[experts[i] < 0 ? E : experts[i]]++;
    order[row] = static_cast<int32_t>(i), place[i] = row;
  }
}

std::vector<Example> examples() {
  const auto example = [](Shape experts, int64_t of, int64_t low) -> Example {
    return {
        {{"experts", of}},
        {{.shape = experts, .dtype = DType::int32, .low = static_cast<double>(low), .high = static_cast<double>(of)}}};
  };
  return {example({2, 5, 2}, 4, 0), example({1, 300, 3}, 37, 0), example({3, 70, 4}, 3, -1),
          example({1, 1, 2}, 300, 0)};
}

}  // namespace

std::vector<Op> expert_order_ops() {
  return {{.name = "expert_order",
           .summary = "the choices of all tokens, sorted by expert",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::expert_order,
           .workspace = workspace,
           .examples = examples}};
}

}  // namespace llm
