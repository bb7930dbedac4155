// add: c = a + b, element by element: the residual connection, and the sum of two gradients of one tensor.
#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  if (g.shape(node.inputs[0]) != g.shape(node.inputs[1]))
    fail("add: shapes ", g.shape(node.inputs[0]).text(), " and ", g.shape(node.inputs[1]).text(), " differ");
  g.add_output(node, "", g.dtype(node.inputs[0]), g.shape(node.inputs[0]));
}

void backward(Graph&, const Node& node, Gradients& gradients) {
  const TensorId d = gradients.of(node.outputs[0]);
  gradients.contribute(node.inputs[0], d);
  gradients.contribute(node.inputs[1], d);
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, static_cast<double>(g.shape(node.outputs[0]).elements()));
}

void cpu(const KernelCall& call) {
  const float *a = call.in(0), *b = call.in(1);
  float* c = call.out(0);
  call.threads.for_blocks(call.out_shape(0).elements(), 8192, [&](int64_t begin, int64_t end) {
    for_vectors(end - begin, [&](int64_t i, auto lanes) {
      lanes.store(c + begin + i, lanes.load(a + begin + i) + lanes.load(b + begin + i));
    });
  });
}

std::vector<Example> examples() { return {{{}, {{{2, 3, 5}}, {{2, 3, 5}}}}, {{}, {{{4, 64}}, {{4, 64}}}}}; }

}  // namespace

std::vector<Op> add_ops() {
  return {{.name = "add",
           .summary = "c = a + b",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::add,
           .examples = examples,
           .in_place = {{0, 0}, {0, 1}},
           .recompute = Recompute::block}};
}

}  // namespace llm
