// bias_gradient: dy (.., O) -> db (O), the sum over all rows. For the linear layers of an fp8 run, where product_fp8
// computes the gradient of the weight, without that of the bias.
#include <algorithm>

#include "llm/ops/cuda_kernels.h"
#include "llm/ops/linear_cuda.h"
#include "llm/ops/norm_rows.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) { g.add_output(node, "", DType::fp32, {g.shape(node.inputs[0]).last()}); }

size_t workspace(const Graph& g, const Node& node, const Target& target) {
  const Shape dy = g.shape(node.inputs[0]);
  return target.cuda ? linear_backward_weight_workspace_cuda(dy.rows(), dy.last(), true)
                     : static_cast<size_t>(kNormBlocks * dy.last()) * 4;
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, static_cast<double>(g.shape(node.inputs[0]).elements()));
}

void cpu(const KernelCall& call) {
  sum_rows(call.threads, call.in(0), call.in_shape(0).rows(), call.in_shape(0).last(), call.accumulates(0),
           call.workspace(), call.out(0));
}

std::vector<Example> examples() {
  return {{{}, {{.shape = {2, 3, 37}, .differentiable = false}}},
          {{}, {{.shape = {300, 65}, .differentiable = false}}}};
}

}  // namespace

std::vector<Op> bias_gradient_ops() {
  return {{.name = "bias_gradient",
           .summary = "the sum over all rows",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::bias_gradient,
           .workspace = workspace,
           .examples = examples,
           .slots = {.bias_gradient = 0}}};
}

}  // namespace llm
