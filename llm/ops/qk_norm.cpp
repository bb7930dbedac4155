// qk_norm: RMSNorm of each query head and each key head over its D channels (Henry et al. 2020); the values pass
// unchanged.
//   qkv (B, T, (H + 2 K) D), query_weight (D), key_weight (D) -> y (B, T, (H + 2 K) D), rstd (B T, H + K)
// Attributes: heads H, kv_heads K, head_size D, epsilon.
#include <algorithm>

#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/cuda_workspaces.h"
#include "llm/ops/norm_rows.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

struct Heads {
  explicit Heads(const Node& node)
      : queries(node.attributes.integer("heads")),
        keys(node.attributes.integer("kv_heads")),
        size(node.attributes.integer("head_size")) {}
  int64_t normed() const { return queries + keys; }
  int64_t width() const { return (queries + 2 * keys) * size; }
  int64_t queries, keys, size;
};

void infer(Graph& g, Node& node) {
  const Heads h(node);
  const Shape qkv = g.shape(node.inputs[0]);
  if (qkv.last() != h.width()) fail("qk_norm: rows must have ", h.width(), " channels, not ", qkv.last());
  g.add_output(node, "", g.dtype(node.inputs[0]), qkv);
  g.add_output(node, "rstd", DType::fp32, {qkv.rows(), h.normed()});
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  const auto d =
      g.add("qk_norm_backward", node.attributes,
            {gradients.of(node.outputs[0]), node.inputs[0], node.inputs[1], node.inputs[2], node.outputs[1]});
  gradients.contribute(node.inputs[0], d[0]);
  gradients.contribute(node.inputs[1], d[1]);
  gradients.contribute(node.inputs[2], d[2]);
}

Cost cost(const Graph& g, const Node& node) {
  const Heads h(node);
  return streaming_cost(g, node, 4.0 * static_cast<double>(g.shape(node.inputs[0]).rows() * h.normed() * h.size));
}

void cpu(const KernelCall& call) {
  const Heads h(call.node);
  const int64_t rows = call.in_shape(0).rows(), width = h.width(), D = h.size;
  const float *qkv = call.in(0), *query_weight = call.in(1), *key_weight = call.in(2);
  float *y = call.out(0), *rstd_out = call.out(1);
  const auto epsilon = static_cast<float>(call.node.attributes.number("epsilon"));
  call.threads.for_blocks(rows, row_grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t head = 0; head < h.normed(); ++head) {
        const int64_t at = r * width + head * D;
        const float* weight = head < h.queries ? query_weight : key_weight;
        const NormStatistics of = norm_row<false>(qkv + at, weight, nullptr, y + at, D, epsilon);
        rstd_out[r * h.normed() + head] = of.rstd;
      }
      if (y != qkv) std::copy_n(qkv + r * width + h.normed() * D, h.keys * D, y + r * width + h.normed() * D);
    }
  });
}

// (dy, qkv, query_weight, key_weight, rstd) -> d_qkv, d_query_weight, d_key_weight
void infer_backward(Graph& g, Node& node) {
  const Heads h(node);
  g.add_output(node, "qkv", g.dtype(node.inputs[1]), g.shape(node.inputs[1]));
  g.add_output(node, "query_weight", DType::fp32, {h.size});
  g.add_output(node, "key_weight", DType::fp32, {h.size});
}

size_t backward_workspace(const Graph& g, const Node& node, const Target& target) {
  const int64_t size = Heads(node).size;
  return target.cuda ? static_cast<size_t>(norm_backward_workspace_cuda(g.shape(node.inputs[1]).rows(), size, 2))
                     : static_cast<size_t>(kNormBlocks * 2 * size) * 4;
}

Cost backward_cost(const Graph& g, const Node& node) {
  const Heads h(node);
  return streaming_cost(g, node, 10.0 * static_cast<double>(g.shape(node.inputs[1]).rows() * h.normed() * h.size));
}

void cpu_backward(const KernelCall& call) {
  const Heads h(call.node);
  const int64_t rows = call.in_shape(1).rows(), width = h.width(), D = h.size;
  const float *dy = call.in(0), *qkv = call.in(1), *query_weight = call.in(2), *key_weight = call.in(3);
  const float* rstd = call.in(4);
  float *dx = call.out(0), *partial = call.workspace();
  const int64_t block = norm_block_rows(rows), blocks = (rows + block - 1) / block;
  call.threads.for_blocks(rows, block, [&](int64_t begin, int64_t end) {
    float* d_query = partial + begin / block * D;
    float* d_key = partial + (blocks + begin / block) * D;
    std::fill_n(d_query, D, 0.0f);
    std::fill_n(d_key, D, 0.0f);
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t head = 0; head < h.normed(); ++head) {
        const int64_t at = r * width + head * D;
        const bool is_query = head < h.queries;
        norm_row_backward<false>(dy + at, qkv + at, is_query ? query_weight : key_weight,
                                 {.rstd = rstd[r * h.normed() + head]}, nullptr, dx + at, is_query ? d_query : d_key,
                                 nullptr, D);
      }
      const int64_t values = r * width + h.normed() * D;
      if (dx != dy) std::copy_n(dy + values, h.keys * D, dx + values);
    }
  });
  sum_blocks(call.threads, partial, blocks, D, call.accumulates(1), call.out(1));
  sum_blocks(call.threads, partial + blocks * D, blocks, D, call.accumulates(2), call.out(2));
}

std::vector<Example> examples() {
  const auto example = [](int64_t heads, int64_t kv_heads, int64_t size) -> Example {
    return {{{"heads", heads}, {"kv_heads", kv_heads}, {"head_size", size}, {"epsilon", 1e-6}},
            {{{2, 9, (heads + 2 * kv_heads) * size}, DType::fp32, -2, 2},
             {{size}, DType::fp32, 0.5, 1.5, Role::parameter},
             {{size}, DType::fp32, 0.5, 1.5, Role::parameter}}};
  };
  return {example(2, 2, 8), example(4, 2, 6), example(3, 1, 20)};
}

}  // namespace

std::vector<Op> qk_norm_ops() {
  return {{.name = "qk_norm",
           .summary = "RMSNorm of each query and key head",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::qk_norm,
           .examples = examples,
           .in_place = {{0, 0}},
           .recompute = Recompute::norms},
          {.name = "qk_norm_backward",
           .summary = "d_qkv, d_query_weight, d_key_weight",
           .infer = infer_backward,
           .cost = backward_cost,
           .cpu = cpu_backward,
           .cuda = cuda::qk_norm_backward,
           .workspace = backward_workspace,
           .in_place = {{0, 0}},
           .slots = {.largest = 3}}};
}

}  // namespace llm
