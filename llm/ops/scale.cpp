// scale: y = factor x, element by element: x -> y. It is its own backward. Attribute: factor.
#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) { g.add_output(node, "", g.dtype(node.inputs[0]), g.shape(node.inputs[0])); }

void backward(Graph& g, const Node& node, Gradients& gradients) {
  gradients.contribute(node.inputs[0], g.add("scale", node.attributes, {gradients.of(node.outputs[0])})[0]);
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, static_cast<double>(g.shape(node.outputs[0]).elements()));
}

void cpu(const KernelCall& call) {
  const float* x = call.in(0);
  float* y = call.out(0);
  const auto factor = static_cast<float>(call.node.attributes.number("factor"));
  call.threads.for_blocks(call.out_shape(0).elements(), 8192, [&](int64_t begin, int64_t end) {
    for_vectors(end - begin,
                [&](int64_t i, auto lanes) { lanes.store(y + begin + i, lanes.load(x + begin + i) * factor); });
  });
}

std::vector<Example> examples() {
  return {{{{"factor", 1.5}}, {{{3, 37}, DType::fp32, -5, 5}}}, {{{"factor", 27.7}}, {{{64}, DType::fp32, -1, 1}}}};
}

}  // namespace

std::vector<Op> scale_ops() {
  return {{.name = "scale",
           .summary = "y = factor x",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::scale,
           .examples = examples,
           .in_place = {{0, 0}}}};
}

}  // namespace llm
