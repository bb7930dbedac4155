// softcap: y = cap tanh(x / cap), element by element: x -> y; and its backward: (dy, y) -> dx.
// Attribute: cap.
#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  if (node.attributes.number("cap") <= 0) fail("softcap: the cap must be over 0");
  g.add_output(node, "", g.dtype(node.inputs[0]), g.shape(node.inputs[0]));
}

// dx = dy (1 - (y / cap)^2): from the output, so x need not be kept.
void backward(Graph& g, const Node& node, Gradients& gradients) {
  const TensorId dy = gradients.of(node.outputs[0]);
  gradients.contribute(node.inputs[0], g.add("softcap_backward", node.attributes, {dy, node.outputs[0]})[0]);
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 10.0 * static_cast<double>(g.shape(node.outputs[0]).elements()));
}

void cpu(const KernelCall& call) {
  const float* x = call.in(0);
  float* y = call.out(0);
  const auto cap = static_cast<float>(call.node.attributes.number("cap"));
  call.threads.for_blocks(call.out_shape(0).elements(), 8192, [&](int64_t begin, int64_t end) {
    for_vectors(end - begin, [&](int64_t i, auto lanes) {
      lanes.store(y + begin + i, simd::tanh(lanes.load(x + begin + i) * (1 / cap)) * cap);
    });
  });
}

void cpu_backward(const KernelCall& call) {
  const float *dy = call.in(0), *y = call.in(1);
  float* dx = call.out(0);
  const auto cap = static_cast<float>(call.node.attributes.number("cap"));
  call.threads.for_blocks(call.out_shape(0).elements(), 8192, [&](int64_t begin, int64_t end) {
    for_vectors(end - begin, [&](int64_t i, auto lanes) {
      const simd::Vec t = lanes.load(y + begin + i) * (1 / cap);
      lanes.store(dx + begin + i, lanes.load(dy + begin + i) * (1.0f - t * t));
    });
  });
}

std::vector<Example> examples() {
  return {{{{"cap", 2}}, {{{3, 37}, DType::fp32, -5, 5}}}, {{{"cap", 30}}, {{{64}, DType::fp32, -40, 40}}}};
}

}  // namespace

std::vector<Op> softcap_ops() {
  return {{.name = "softcap",
           .summary = "y = cap tanh(x / cap)",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::softcap,
           .examples = examples,
           .in_place = {{0, 0}}},
          {.name = "softcap_backward",
           .summary = "dx = dy (1 - (y / cap)^2)",
           .infer = infer,
           .cost = cost,
           .cpu = cpu_backward,
           .cuda = cuda::softcap_backward,
           .in_place = {{0, 0}, {0, 1}}}};
}

}  // namespace llm
