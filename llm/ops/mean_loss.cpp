// mean_loss: losses (B, T), weights (B, T) -> loss (1), the sum of losses times weights, added up over the micro-steps.
// With weights of 1 / (tokens of the step) it is the step's mean loss: the host reads one number instead of B T.
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  if (g.shape(node.inputs[0]) != g.shape(node.inputs[1])) fail("mean_loss: losses and weights differ in shape");
  // Like the gradients of parameters, the loss is kept from micro-step to micro-step.
  g.tensor(g.add_output(node, "", DType::fp32, {1})).role = Role::accumulator;
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 2.0 * static_cast<double>(g.shape(node.inputs[0]).elements()));
}

void cpu(const KernelCall& call) {
  const float *losses = call.in(0), *weights = call.in(1);
  double sum = call.accumulates(0) ? static_cast<double>(*call.out(0)) : 0.0;
  for (int64_t i = 0; i < call.in_shape(0).elements(); ++i)
    sum += static_cast<double>(losses[i]) * static_cast<double>(weights[i]);
  *call.out(0) = static_cast<float>(sum);
}

std::vector<Example> examples() {
  const auto example = [](Shape shape) -> Example {
    return {{},
            {{.shape = shape, .low = 0, .high = 9, .differentiable = false, .keeps_fp32 = true},
             {.shape = shape, .low = 0, .high = 1, .differentiable = false, .keeps_fp32 = true}}};
  };
  return {example({2, 5}), example({3, 700})};
}

}  // namespace

std::vector<Op> mean_loss_ops() {
  return {{.name = "mean_loss",
           .summary = "the weighted sum of all losses",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::mean_loss,
           .examples = examples}};
}

}  // namespace llm
