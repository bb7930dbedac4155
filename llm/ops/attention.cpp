// attention: causal self-attention with grouped queries. The CPU kernels are in attention_cpu.cpp (forward) and
// attention_backward_cpu.cpp; for inference there is attention_paged.cpp.
//   attention: qkv (B, T, (H + 2 K) D), [document starts (B, T) int32] -> out (B, T, H D), log_sum_exp (B, H, T)
//   attention: queries (B, T, H D), [document starts (B, T) int32], keys and values (B, T', 2 K D) -> the same
// Attributes: heads H, kv_heads K, head_size D. With document starts (document_starts.cpp), which number the keys, a
// token attends only to its own document. Where keys and values have a tensor of their own, the T queries of a sequence
// are one or two chunks of neighbouring tokens (chunks.h), whose positions are counted from the first key: queries behind
// the last key see all of them. A query that sees none has the output 0 and the log_sum_exp -infinity.
#include "llm/ops/attention_cpu.h"

#include "llm/graph/autodiff.h"
#include "llm/ops/attention_cuda.h"
#include "llm/ops/chunks.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"

namespace llm {

AttentionShape attention_shape(const Graph& g, const Node& node, AttentionInputs inputs) {
  const Attributes& a = node.attributes;
  const Shape q = g.shape(node.inputs[inputs.queries]);
  if (q.rank() != 3) fail("attention: queries must be (B, T, channels), not ", q.text());
  AttentionShape s{q[0], q[1], a.integer("heads"), a.integer("kv_heads"), a.integer("head_size")};
  if (const TensorId id = node.input(inputs.keys); id != kNone) {
    const Chunks chunks = chunks_of(a, s.tokens);
    s.keys = g.shape(id)[1], s.chunks = chunks.count, s.firsts = {chunks.firsts[0], chunks.firsts[1]};
    if (const Shape keys = {s.batch, s.keys, s.key_width()}; g.shape(id) != keys)
      fail("attention: keys and values must be ", keys.text(), ", not ", g.shape(id).text());
  }
  if (q[2] != s.query_width())
    fail("attention: ", s.keys ? "queries" : "qkv", " must be (B, T, ", s.query_width(), "), not ", q.text());
  return s;
}

namespace {

void check_starts(const Graph& g, TensorId starts, const AttentionShape& s) {
  const Shape expected = {s.batch, s.tokens};
  if (starts != kNone && g.shape(starts) != expected)
    fail("attention: the document starts must be ", expected.text(), ", not ", g.shape(starts).text());
}

size_t floats(int64_t count) { return static_cast<size_t>(count) * 4; }

void infer(Graph& g, Node& node) {
  const AttentionShape s = attention_shape(g, node, kAttentionInputs);
  check_starts(g, node.input(1), s);
  g.add_output(node, "", g.dtype(node.inputs[0]), {s.batch, s.tokens, s.heads * s.head_size});
  g.add_output(node, "log_sum_exp", DType::fp32, {s.batch, s.heads, s.tokens});
}

size_t workspace(const Graph& g, const Node& node, const Target& target) {
  const AttentionShape s = attention_shape(g, node, kAttentionInputs);
  return target.cuda ? attention_workspace_cuda(s, g.dtype(node.inputs[0]))
                     : floats(attention_workspace(s, target.threads));
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  std::vector<TensorId> inputs = {gradients.of(node.outputs[0]), node.inputs[0], node.outputs[0], node.outputs[1]};
  if (node.input(1) != kNone || node.input(2) != kNone) inputs.push_back(node.inputs[1]);
  if (node.input(2) != kNone) inputs.push_back(node.inputs[2]);
  const auto d = g.add("attention_backward", node.attributes, inputs);
  if (node.input(2) != kNone) gradients.contribute(node.inputs[2], d[2]);
  gradients.contribute(node.inputs[0], d[0]);
}

// The keys that the queries of a chunk see, added up: each up to its own position, or all.
double seen_keys(int64_t queries, int64_t first, int64_t keys) {
  const int64_t rising = std::clamp<int64_t>(keys - first, 0, queries);
  return static_cast<double>(rising) * (static_cast<double>(first) + 0.5 * static_cast<double>(rising + 1)) +
         static_cast<double>(queries - rising) * static_cast<double>(keys);
}

// kProducts products of D channels for each pair of a query and a key that it sees in each head. Documents leave out
// more, but how much depends on the data.
template <const AttentionInputs& kInputs, int kProducts>
Cost cost(const Graph& g, const Node& node) {
  const AttentionShape s = attention_shape(g, node, kInputs);
  double pairs = 0;  // of a head
  for (int64_t chunk = 0; chunk < s.chunks; ++chunk)
    pairs += seen_keys(s.chunk(), s.firsts[static_cast<size_t>(chunk)], s.key_rows());
  return streaming_cost(
      g, node, static_cast<double>(s.batch * s.heads) * pairs * static_cast<double>(2 * kProducts * s.head_size));
}

void cpu(const KernelCall& call) {
  attention_forward(call.threads, attention_shape(call.graph, call.node, kAttentionInputs), call.in(0), call.out(0),
                    call.out(1), call.workspace(), call.in_int(1), call.in(2));
}

// (d_out, qkv, out, log_sum_exp, [document starts]) -> d_qkv; or
// (d_out, queries, out, log_sum_exp, [document starts], keys and values) -> d_queries, (absent), d_keys_values
void infer_backward(Graph& g, Node& node) {
  const AttentionShape s = attention_shape(g, node, kAttentionBackwardInputs);
  g.add_output(node, s.keys ? "queries" : "qkv", g.dtype(node.inputs[1]), g.shape(node.inputs[1]));
  if (!s.keys) return;
  node.outputs.push_back(kNone);
  g.add_output(node, "keys_values", g.dtype(node.inputs[5]), g.shape(node.inputs[5]));
}

size_t backward_workspace(const Graph& g, const Node& node, const Target& target) {
  const AttentionShape s = attention_shape(g, node, kAttentionBackwardInputs);
  return target.cuda ? attention_backward_workspace_cuda(s, g.dtype(node.inputs[1]))
                     : floats(attention_backward_workspace(s, target.threads));
}

void cpu_backward(const KernelCall& call) {
  attention_backward(call.threads, attention_shape(call.graph, call.node, kAttentionBackwardInputs), call.in(1),
                     call.in(2), call.in(3), call.in(0), call.out(0), call.workspace(), call.in_int(4), call.in(5),
                     call.out(2));
}

Attributes heads(int64_t heads, int64_t kv_heads, int64_t size) {
  return {{"heads", heads}, {"kv_heads", kv_heads}, {"head_size", size}};
}

std::vector<Example> examples() {
  const auto example = [](int64_t H, int64_t K, int64_t D, int64_t B, int64_t T) -> Example {
    return {heads(H, K, D), {{{B, T, (H + 2 * K) * D}, DType::fp32, -2, 2}}};
  };
  using List = std::vector<int64_t>;
  const auto chunks = [](int64_t H, int64_t K, int64_t D, int64_t B, int64_t T, int64_t keys, const List& firsts,
                         const List& starts = {}) -> Example {
    Example e{heads(H, K, D), {{{B, T, H * D}, DType::fp32, -2, 2}, {}, {{B, keys, 2 * K * D}, DType::fp32, -2, 2}}};
    e.attributes.set("firsts", firsts);
    if (!starts.empty())
      e.inputs[1] = {.shape = {B, T}, .dtype = DType::int32, .values = {starts.begin(), starts.end()}};
    return e;
  };
  return {example(2, 2, 8, 2, 5),
          example(4, 2, 6, 1, 9),
          example(1, 1, 20, 1, 1),
          example(2, 1, 16, 1, 37),
          chunks(2, 1, 8, 2, 3, 9, {6}),
          chunks(4, 2, 6, 2, 6, 12, {3, 6}),
          chunks(2, 1, 16, 1, 26, 91, {13, 65}),
          chunks(2, 2, 8, 1, 4, 11, {2, 8}, {0, 3, 8, 8}),
          chunks(2, 1, 8, 2, 5, 7, {7}),
          chunks(2, 1, 8, 1, 9, 6, {3}),
          chunks(4, 2, 6, 1, 6, 9, {9}, {0, 4, 4, 8, 9, 9}),
          chunks(1, 1, 8, 1, 3, 20, {20}, {20, 20, 20})};
}

}  // namespace

std::vector<Op> attention_ops() {
  return {{.name = "attention",
           .summary = "softmax(q k^T / sqrt(D), causal) v without a T x T matrix",
           .infer = infer,
           .backward = backward,
           .cost = cost<kAttentionInputs, 2>,
           .cpu = cpu,
           .cuda = cuda::attention,
           .workspace = workspace,
           .examples = examples,
           .slots = {.largest = 2},
           .recompute = Recompute::attention},
          {.name = "attention_backward",
           .summary = "d_qkv, from the scores made again",
           .infer = infer_backward,
           .cost = cost<kAttentionBackwardInputs, 5>,  // the scores again, dP, dV, dQ and dK
           .cpu = cpu_backward,
           .cuda = cuda::attention_backward,
           .workspace = backward_workspace,
           .slots = {.largest = 1}}};
}

}  // namespace llm
