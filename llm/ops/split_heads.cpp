// split_heads: qkv (B, T, (H + 2 K) D) -> queries (B, T, H D), keys and values (B, T, 2 K D), for ranks that send each
// other the latter. Attributes: heads H, kv_heads K, head_size D. join_heads, its backward pass, puts them together
// again.
#include <algorithm>

#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  const Attributes& a = node.attributes;
  const int64_t D = a.integer("head_size"), queries = a.integer("heads") * D, keys = 2 * a.integer("kv_heads") * D;
  const Shape qkv = g.shape(node.inputs[0]);
  if (qkv.rank() != 3 || qkv[2] != queries + keys)
    fail("split_heads: qkv must be (B, T, ", queries + keys, "), not ", qkv.text());
  g.add_output(node, "queries", g.dtype(node.inputs[0]), {qkv[0], qkv[1], queries});
  g.add_output(node, "keys_values", g.dtype(node.inputs[0]), {qkv[0], qkv[1], keys});
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  gradients.contribute(node.inputs[0], g.add("join_heads", node.attributes,
                                             {gradients.of(node.outputs[0]), gradients.of(node.outputs[1])})[0]);
}

// (queries, keys and values) -> qkv; what is absent is 0.
void infer_join(Graph& g, Node& node) {
  const Attributes& a = node.attributes;
  const TensorId some = node.inputs[0] != kNone ? node.inputs[0] : node.inputs[1];
  const Shape s = g.shape(some);
  g.add_output(node, "", g.dtype(some),
               {s[0], s[1], (a.integer("heads") + 2 * a.integer("kv_heads")) * a.integer("head_size")});
}

int64_t query_columns(const Node& node) {
  return node.attributes.integer("heads") * node.attributes.integer("head_size");
}

Cost cost(const Graph& g, const Node& node) { return streaming_cost(g, node, 0); }

// Where there is nothing to copy from, zeros.
void copy_rows(ThreadTeam& threads, int64_t rows, const std::byte* from, int64_t from_stride, std::byte* to,
               int64_t to_stride, int64_t bytes) {
  threads.for_blocks(rows, row_grain(bytes), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      if (from)
        std::copy_n(from + row * from_stride, bytes, to + row * to_stride);
      else
        std::fill_n(to + row * to_stride, bytes, std::byte{0});
  });
}

void cpu(const KernelCall& call) {
  const auto size = static_cast<int64_t>(size_of(call.in_dtype(0)));
  const int64_t rows = call.in_shape(0).rows(), queries = call.out_shape(0).last() * size,
                keys = call.out_shape(1).last() * size;
  const auto* from = call.in<std::byte>(0);
  copy_rows(call.threads, rows, from, queries + keys, call.out<std::byte>(0), queries, queries);
  copy_rows(call.threads, rows, from + queries, queries + keys, call.out<std::byte>(1), keys, keys);
}

void cpu_join(const KernelCall& call) {
  const auto size = static_cast<int64_t>(size_of(call.out_dtype(0)));
  const int64_t rows = call.out_shape(0).rows(), queries = query_columns(call.node) * size,
                keys = call.out_shape(0).last() * size - queries;
  auto* to = call.out<std::byte>(0);
  copy_rows(call.threads, rows, call.in<std::byte>(0), queries, to, queries + keys, queries);
  copy_rows(call.threads, rows, call.in<std::byte>(1), keys, to + queries, queries + keys, keys);
}

std::vector<Example> examples() {
  const auto example = [](int64_t H, int64_t K, int64_t D, int64_t B, int64_t T) -> Example {
    return {{{"heads", H}, {"kv_heads", K}, {"head_size", D}}, {{{B, T, (H + 2 * K) * D}}}};
  };
  return {example(2, 2, 8, 2, 5), example(4, 2, 3, 1, 9), example(3, 1, 16, 1, 37)};
}

}  // namespace

std::vector<Op> split_heads_ops() {
  return {{.name = "split_heads",
           .summary = "query heads, and key and value heads, each by themselves",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::split_heads,
           .examples = examples,
           .recompute = Recompute::norms,
           .cpu_takes_bf16 = true},
          {.name = "join_heads",
           .summary = "query heads, and key and value heads, in one row",
           .infer = infer_join,
           .cost = cost,
           .cpu = cpu_join,
           .cuda = cuda::join_heads,
           .cpu_takes_bf16 = true}};
}

}  // namespace llm
