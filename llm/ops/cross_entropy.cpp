// cross_entropy: losses = log(sum(exp(logits))) - logits[target], in nats.
//   logits (B, T, V), targets (B, T) int32 -> losses (B, T), log_sum_exp (B, T)
//   backward: (d_losses, logits, targets, log_sum_exp) -> d_logits = (softmax - one_hot(target)) d_loss
// A target below 0 is ignored: its loss and its gradient are 0.
// Attributes, both optional:
//   softcap: cap tanh(logit / cap) takes the place of each logit (Gemma Team 2024, "Gemma 2")
//   z_loss: adds z_loss log(sum(exp(logits)))^2 to the losses, which keeps the softmax's sum near 1 (Chowdhery et al.
//   2022, "PaLM")
// In a whole model the fusion pass replaces this op and the head's product by head_loss, which never holds all logits.
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
  if (node.attributes.number("softcap", 0) < 0) fail("cross_entropy: the logits' cap is below 0");
  g.add_output(node, "", DType::fp32, targets);
  g.add_output(node, "log_sum_exp", DType::fp32, targets);
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  const auto d = g.add("cross_entropy_backward", node.attributes,
                       {gradients.of(node.outputs[0]), node.inputs[0], node.inputs[1], node.outputs[1]});
  gradients.contribute(node.inputs[0], d[0]);
}

double flops_of(const Node& node, const Shape& logits) {
  return (node.attributes.has("softcap") ? 14.0 : 4.0) * static_cast<double>(logits.elements());
}

Cost cost(const Graph& g, const Node& node) { return streaming_cost(g, node, flops_of(node, g.shape(node.inputs[0]))); }

void cpu(const KernelCall& call) {
  const int64_t V = call.in_shape(0).last();
  const float* logits = call.in(0);
  const int32_t* targets = call.in_int(1);
  float *losses = call.out(0), *lse_out = call.out(1);
  const SoftCap soft_cap(call.node.attributes.number("softcap", 0));
  const auto z_loss = static_cast<float>(call.node.attributes.number("z_loss", 0));
  call.threads.for_blocks(call.in_shape(0).rows(), row_grain(V), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float lse = log_sum_exp(logits + r * V, V, nullptr, nullptr, soft_cap);
      lse_out[r] = lse;
      losses[r] = targets[r] < 0 ? 0.0f : lse - soft_cap(logits[r * V + targets[r]]) + z_loss * lse * lse;
    }
  });
}

void infer_backward(Graph& g, Node& node) { g.add_output(node, "", g.dtype(node.inputs[1]), g.shape(node.inputs[1])); }

Cost backward_cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, flops_of(node, g.shape(node.inputs[1])));
}

void cpu_backward(const KernelCall& call) {
  const int64_t V = call.in_shape(1).last();
  const float *d_losses = call.in(0), *logits = call.in(1), *lse = call.in(3);
  const int32_t* targets = call.in_int(2);
  float* d_logits = call.out(0);
  const SoftCap soft_cap(call.node.attributes.number("softcap", 0));
  const auto z_loss = static_cast<float>(call.node.attributes.number("z_loss", 0));
  call.threads.for_blocks(call.in_shape(1).rows(), row_grain(V), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float d = targets[r] < 0 ? 0.0f : d_losses[r], scale = d * (1 + 2 * z_loss * lse[r]);
      // The target's logit is read first because the gradient may lie in place of the logits.
      const float target = targets[r] < 0 ? 0.0f : soft_cap(logits[r * V + targets[r]]);
      for_vectors(V, [&](int64_t c, auto lanes) {
        const simd::Vec logit = soft_cap(lanes.load(logits + r * V + c));
        simd::Vec gradient = simd::exp(logit - lse[r]) * scale;
        if (soft_cap) gradient *= soft_cap.derivative(logit);
        lanes.store(d_logits + r * V + c, gradient);
      });
      if (targets[r] >= 0) d_logits[r * V + targets[r]] -= soft_cap ? d * soft_cap.derivative(target) : d;
    }
  });
}

std::vector<Example> examples() {
  return {{{}, {{{1, 3, 11}, DType::fp32, -3, 3}, {{1, 3}, DType::int32, -1, 11}}},
          {{}, {{{2, 4, 64}, DType::fp32, -9, 9}, {{2, 4}, DType::int32, 0, 64}}},
          {{{"softcap", 5}, {"z_loss", 0.1}}, {{{2, 3, 21}, DType::fp32, -9, 9}, {{2, 3}, DType::int32, -1, 21}}},
          {{{"softcap", 30}}, {{{1, 3, 40}, DType::fp32, -9, 9}, {{1, 3}, DType::int32, 0, 40}}}};
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
