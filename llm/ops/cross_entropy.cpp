// cross_entropy: losses = log(sum(exp(logits))) - logits[target], in nats.
//   logits (B, T, V), targets (B, T) int32 -> losses (B, T), log_sum_exp (B, T)
//   backward: (d_losses, logits, targets, log_sum_exp) -> d_logits = (softmax - one_hot(target)) d_loss
// In a whole model the fusion pass puts head_loss in its place, which never holds all logits.
#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/softmax_rows.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  const Shape logits = g.shape(node.inputs[0]), targets = g.shape(node.inputs[1]);
  if (targets.elements() != logits.rows())
    fail("cross_entropy: ", targets.text(), " targets for logits ", logits.text());
  g.add_output(node, "", DType::fp32, targets);
  g.add_output(node, "log_sum_exp", DType::fp32, targets);
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  const auto d = g.add("cross_entropy_backward", {},
                       {gradients.of(node.outputs[0]), node.inputs[0], node.inputs[1], node.outputs[1]});
  gradients.contribute(node.inputs[0], d[0]);
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 4.0 * static_cast<double>(g.shape(node.inputs[0]).elements()));
}

void cpu(const KernelCall& call) {
  const int64_t V = call.in_shape(0).last();
  const float* logits = call.in(0);
  const int32_t* targets = call.in_int(1);
  float *losses = call.out(0), *lse_out = call.out(1);
  call.threads.for_blocks(call.in_shape(0).rows(), row_grain(V), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float lse = log_sum_exp(logits + r * V, V, nullptr, nullptr);
      lse_out[r] = lse;
      losses[r] = targets[r] < 0 ? 0.0f : lse - logits[r * V + targets[r]];
    }
  });
}

void infer_backward(Graph& g, Node& node) { g.add_output(node, "", g.dtype(node.inputs[1]), g.shape(node.inputs[1])); }

Cost backward_cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 4.0 * static_cast<double>(g.shape(node.inputs[1]).elements()));
}

void cpu_backward(const KernelCall& call) {
  const int64_t V = call.in_shape(1).last();
  const float *d_losses = call.in(0), *logits = call.in(1), *lse = call.in(3);
  const int32_t* targets = call.in_int(2);
  float* d_logits = call.out(0);
  call.threads.for_blocks(call.in_shape(1).rows(), row_grain(V), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float scale = targets[r] < 0 ? 0.0f : d_losses[r];
      for_vectors(V, [&](int64_t c, auto lanes) {
        lanes.store(d_logits + r * V + c, simd::exp(lanes.load(logits + r * V + c) - lse[r]) * scale);
      });
      if (targets[r] >= 0) d_logits[r * V + targets[r]] -= scale;
    }
  });
}

std::vector<Example> examples() {
  return {{{}, {{{1, 3, 11}, DType::fp32, -3, 3}, {{1, 3}, DType::int32, -1, 11}}},
          {{}, {{{2, 4, 64}, DType::fp32, -9, 9}, {{2, 4}, DType::int32, 0, 64}}}};
}

}  // namespace

std::vector<Op> cross_entropy_ops() {
  return {{.name = "cross_entropy",
           .summary = "losses = log(sum(exp(logits))) - logits[target]",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::cross_entropy,
           .examples = examples},
          {.name = "cross_entropy_backward",
           .summary = "d_logits = (softmax - one_hot) d_loss",
           .infer = infer_backward,
           .cost = backward_cost,
           .cpu = cpu_backward,
           .cuda = cuda::cross_entropy_backward,
           .in_place = {{0, 1}}}};
}

}  // namespace llm
