// gradient_norm: all gradients -> (1), the Euclidean norm of all of them together. The squares of blocks of a fixed
// size are added in fp32, the blocks' sums in double and in order, so the bits do not depend on the number of threads.
#include <cmath>

#include "llm/base/rounding.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/cuda_workspaces.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

constexpr int64_t kBlock = 16384;  // floats

void infer(Graph& g, Node& node) { g.add_output(node, "", DType::fp32, {1}); }

size_t workspace(const Graph& g, const Node& node, const Target& target) {
  int64_t blocks = 0, on_cuda = 0;
  for (TensorId id : node.inputs) {
    blocks += ceil_div(g.shape(id).elements(), kBlock);
    on_cuda += gradient_norm_blocks_cuda(g.shape(id).elements());
  }
  return target.cuda ? static_cast<size_t>(gradient_norm_workspace_cuda(on_cuda))
                     : static_cast<size_t>(blocks) * sizeof(double);
}

Cost cost(const Graph& g, const Node& node) {
  double elements = 0;
  for (TensorId id : node.inputs) elements += static_cast<double>(g.shape(id).elements());
  return streaming_cost(g, node, 2 * elements);
}

void cpu(const KernelCall& call) {
  auto* sums = reinterpret_cast<double*>(call.workspace());
  const auto size_of = [&](size_t i) { return call.in_shape(i).elements(); };
  const auto sum_block = [&](size_t i, int64_t block, int64_t begin, int64_t end) {
    const float* x = call.in(i);
    simd::Vec squares{};
    for_vectors(end - begin, [&](int64_t c, auto lanes) {
      const simd::Vec v = lanes.load(x + begin + c);
      squares += v * v;
    });
    sums[block] = simd::reduce_add(squares);
  };
  const int64_t blocks = call.threads.for_blocks_of(call.node.inputs.size(), size_of, kBlock, sum_block);
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) total += sums[b];
  *call.out(0) = static_cast<float>(std::sqrt(total));
}

std::vector<Example> examples() {
  return {{{},
           {{.shape = {3, 7}, .differentiable = false, .keeps_fp32 = true},
            {.shape = {40}, .differentiable = false, .keeps_fp32 = true}}},
          {{}, {{.shape = {5, 7000}, .differentiable = false, .keeps_fp32 = true}}}};
}

}  // namespace

std::vector<Op> gradient_norm_ops() {
  return {{.name = "gradient_norm",
           .summary = "the norm of all gradients together",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::gradient_norm,
           .workspace = workspace,
           .examples = examples}};
}

}  // namespace llm
