// select_last: x (B, T, C) -> (B, 1, C), the row of the last token. Generation needs only the logits of that token.
#include <algorithm>

#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  const Shape x = g.shape(node.inputs[0]);
  if (x.rank() != 3 || x[1] < 1) fail("select_last: x must be (B, T, C), not ", x.text());
  g.add_output(node, "", g.dtype(node.inputs[0]), {x[0], 1, x[2]});
}

Cost cost(const Graph& g, const Node& node) {
  const auto bytes = static_cast<double>(g.tensor(node.outputs[0]).bytes());
  return {0, bytes, bytes};
}

void cpu(const KernelCall& call) {
  const int64_t B = call.in_shape(0)[0], T = call.in_shape(0)[1], C = call.in_shape(0)[2];
  for (int64_t b = 0; b < B; ++b) std::copy_n(call.in(0) + (b * T + T - 1) * C, C, call.out(0) + b * C);
}

std::vector<Example> examples() {
  return {{{}, {{.shape = {2, 3, 5}, .differentiable = false}}}, {{}, {{.shape = {1, 1, 8}, .differentiable = false}}}};
}

}  // namespace

std::vector<Op> select_last_ops() {
  return {{.name = "select_last",
           .summary = "the last token's row",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::select_last,
           .examples = examples}};
}

}  // namespace llm
