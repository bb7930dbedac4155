// attention: causal self-attention with grouped queries on packed q, k, v. The CPU kernels are in attention_cpu.cpp
// (forward) and attention_backward_cpu.cpp; for inference there is attention_paged.cpp.
//   attention: qkv (B, T, (H + 2 K) D), [document starts (B, T) int32] -> out (B, T, H D), log_sum_exp (B, H, T)
// Attributes: heads H, kv_heads K, head_size D. With document starts (document_starts.cpp) a token attends only to its
// own document.
#include "llm/ops/attention_cpu.h"

#include "llm/graph/autodiff.h"
#include "llm/ops/attention_cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

AttentionShape shape_of(const Graph& g, const Node& node, TensorId qkv) {
  const Attributes& a = node.attributes;
  const Shape s = g.shape(qkv);
  const AttentionShape shape{s[0], s[1], a.integer("heads"), a.integer("kv_heads"), a.integer("head_size")};
  const int64_t width = (shape.heads + 2 * shape.kv_heads) * shape.head_size;
  if (s.rank() != 3 || s[2] != width) fail("attention: qkv must be (B, T, ", width, "), not ", s.text());
  return shape;
}

void check_starts(const Graph& g, TensorId starts, const AttentionShape& s) {
  const Shape expected = {s.batch, s.tokens};
  if (starts != kNone && g.shape(starts) != expected)
    fail("attention: the document starts must be ", expected.text(), ", not ", g.shape(starts).text());
}

size_t floats(int64_t count) { return static_cast<size_t>(count) * 4; }

void infer(Graph& g, Node& node) {
  const AttentionShape s = shape_of(g, node, node.inputs[0]);
  check_starts(g, node.input(1), s);
  g.add_output(node, "", g.dtype(node.inputs[0]), {s.batch, s.tokens, s.heads * s.head_size});
  g.add_output(node, "log_sum_exp", DType::fp32, {s.batch, s.heads, s.tokens});
}

size_t workspace(const Graph& g, const Node& node, const Target& target) {
  const AttentionShape s = shape_of(g, node, node.inputs[0]);
  return target.cuda ? attention_workspace_cuda(s, g.dtype(node.inputs[0]))
                     : floats(attention_workspace(s, target.threads));
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  std::vector<TensorId> inputs = {gradients.of(node.outputs[0]), node.inputs[0], node.outputs[0], node.outputs[1]};
  if (node.input(1) != kNone) inputs.push_back(node.inputs[1]);
  const auto d = g.add("attention_backward", node.attributes, inputs);
  gradients.contribute(node.inputs[0], d[0]);
}

// kProducts products of T x T x D for each head, of which the half below the diagonal counts; qkv is input kQkv.
// Documents leave out more, but how much depends on the data.
template <size_t kQkv, int kProducts>
Cost cost(const Graph& g, const Node& node) {
  const AttentionShape s = shape_of(g, node, node.inputs[kQkv]);
  const double pairs = 0.5 * static_cast<double>(s.batch * s.heads * s.tokens) * static_cast<double>(s.tokens + 1);
  return streaming_cost(g, node, pairs * static_cast<double>(2 * kProducts * s.head_size));
}

void cpu(const KernelCall& call) {
  attention_forward(call.threads, shape_of(call.graph, call.node, call.node.inputs[0]), call.in(0), call.out(0),
                    call.out(1), call.workspace(), call.in_int(1));
}

// (d_out, qkv, out, log_sum_exp, [document starts]) -> d_qkv
void infer_backward(Graph& g, Node& node) {
  shape_of(g, node, node.inputs[1]);
  g.add_output(node, "qkv", g.dtype(node.inputs[1]), g.shape(node.inputs[1]));
}

size_t backward_workspace(const Graph& g, const Node& node, const Target& target) {
  const AttentionShape s = shape_of(g, node, node.inputs[1]);
  return target.cuda ? attention_backward_workspace_cuda(s, g.dtype(node.inputs[1]))
                     : floats(attention_backward_workspace(s, target.threads));
}

void cpu_backward(const KernelCall& call) {
  attention_backward(call.threads, shape_of(call.graph, call.node, call.node.inputs[1]), call.in(1), call.in(2),
                     call.in(3), call.in(0), call.out(0), call.workspace(), call.in_int(4));
}

Attributes heads(int64_t heads, int64_t kv_heads, int64_t size) {
  return {{"heads", heads}, {"kv_heads", kv_heads}, {"head_size", size}};
}

std::vector<Example> examples() {
  const auto example = [](int64_t H, int64_t K, int64_t D, int64_t B, int64_t T) -> Example {
    return {heads(H, K, D), {{{B, T, (H + 2 * K) * D}, DType::fp32, -2, 2}}};
  };
  return {example(2, 2, 8, 2, 5), example(4, 2, 6, 1, 9), example(1, 1, 20, 1, 1), example(2, 1, 16, 1, 37)};
}

}  // namespace

std::vector<Op> attention_ops() {
  return {{.name = "attention",
           .summary = "softmax(q k^T / sqrt(D), causal) v without a T x T matrix",
           .infer = infer,
           .backward = backward,
           .cost = cost<0, 2>,
           .cpu = cpu,
           .cuda = cuda::attention,
           .workspace = workspace,
           .examples = examples,
           .slots = {.largest = 2},
           .recompute = Recompute::attention},
          {.name = "attention_backward",
           .summary = "d_qkv, from the scores made again",
           .infer = infer_backward,
           .cost = cost<1, 5>,  // the scores again, dP, dV, dQ and dK
           .cpu = cpu_backward,
           .cuda = cuda::attention_backward,
           .workspace = backward_workspace,
           .slots = {.largest = 1}}};
}

}  // namespace llm
