// sample: logits (1, 1, V), the next token (1, 1) int32, draws (R, 4) int32 -> the next token and the draws, in place.
// The token is a pure function of the logits and of temperature, top_k, top_p, seed and token_index of the StepState
// (their meaning: sampling.h). The op also writes a Draw to row token_index modulo R of the draws, where the host finds
// it later. If no token can be drawn, the next token becomes 0. On the GPU the kernel adds 1 to position and
// token_index of the device's StepState, so that the next run can start before the host has seen the token. Attributes:
// greedy, a flag, for runs with a temperature of 0 alone; limit, only the tokens below it are drawn (0: all V).
#include <cstring>

#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/sample_cuda.h"
#include "llm/ops/sampling.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  const Shape logits = g.shape(node.inputs[0]), token = g.shape(node.inputs[1]), draws = g.shape(node.inputs[2]);
  if (logits.rows() != 1 || token.elements() != 1 || draws.rank() != 2 || draws[1] != 4)
    fail("sample: logits (1, 1, V), token (1, 1) and draws (R, 4) do not fit ", logits.text(), ", ", token.text(),
         " and ", draws.text());
  for (size_t i : {1u, 2u}) {
    const TensorId updated = g.add_output(node, i == 1 ? "token" : "draws", DType::int32, g.shape(node.inputs[i]));
    g.tensor(updated).alias = node.inputs[i];
    g.tensor(updated).role = Role::state;
  }
}

size_t workspace(const Graph& g, const Node& node, const Target& target) {
  const int64_t vocabulary = g.shape(node.inputs[0]).last();
  return target.cuda ? sample_workspace_cuda(vocabulary) : static_cast<size_t>(vocabulary) * sizeof(SamplingCandidate);
}

Cost cost(const Graph& g, const Node& node) {
  const Tensor& logits = g.tensor(node.inputs[0]);
  return {static_cast<double>(logits.shape.last()), static_cast<double>(logits.bytes()), 4 + sizeof(Draw)};
}

void cpu(const KernelCall& call) {
  const StepState& s = call.step;
  const Draw draw = draw_token({s.temperature, s.top_k, s.top_p, s.seed}, call.in(0), drawable_tokens(call),
                               s.token_index, call.workspace<SamplingCandidate>());
  *call.out<int32_t>(0) = draw.id;
  std::memcpy(call.out<int32_t>(1) + s.token_index % call.out_shape(1)[0] * 4, &draw, sizeof draw);
}

std::vector<Example> examples() {
  const auto example = [](int64_t V, int64_t draws, double range, int64_t limit = 0) -> Example {
    return {{{"greedy", false}, {"limit", limit}},
            {{.shape = {1, 1, V}, .low = -range, .high = range, .differentiable = false},
             {.shape = {1, 1}, .dtype = DType::int32, .low = 0, .high = 5, .role = Role::state},
             {.shape = {draws, 4}, .dtype = DType::int32, .low = 0, .high = 5, .role = Role::state}}};
  };
  return {example(7, 4, 2), example(37, 1, 5), example(1030, 3, 3), example(1030, 3, 3, 5), example(2060, 3, 3, 1026)};
}

}  // namespace

std::vector<Op> sample_ops() {
  return {{.name = "sample",
           .summary = "the next token, drawn by the logits",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::sample,
           .workspace = workspace,
           .examples = examples,
           .moves_step = true}};
}

}  // namespace llm
