// gelu and relu2, element by element: h -> a; and their backward: (da, h) -> dh.
#include "llm/graph/autodiff.h"
#include "llm/ops/activation_functions.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

constexpr int64_t kGrain = 8192;

void infer(Graph& g, Node& node) { g.add_output(node, "", g.dtype(node.inputs[0]), g.shape(node.inputs[0])); }

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 10.0 * static_cast<double>(g.shape(node.outputs[0]).elements()));
}

template <class Function>
void cpu(const KernelCall& call) {
  const float* h = call.in(0);
  float* a = call.out(0);
  call.threads.for_blocks(call.out_shape(0).elements(), kGrain, [&](int64_t begin, int64_t end) {
    for_vectors(end - begin,
                [&](int64_t i, auto lanes) { lanes.store(a + begin + i, Function::value(lanes.load(h + begin + i))); });
  });
}

template <class Function>
void cpu_backward(const KernelCall& call) {
  const float *da = call.in(0), *h = call.in(1);
  float* dh = call.out(0);
  call.threads.for_blocks(call.out_shape(0).elements(), kGrain, [&](int64_t begin, int64_t end) {
    for_vectors(end - begin, [&](int64_t i, auto lanes) {
      lanes.store(dh + begin + i, lanes.load(da + begin + i) * Function::derivative(lanes.load(h + begin + i)));
    });
  });
}

void gelu_backward(Graph& g, const Node& node, Gradients& gradients) {
  gradients.contribute(node.inputs[0], g.add("gelu_backward", {}, {gradients.of(node.outputs[0]), node.inputs[0]})[0]);
}

void relu2_backward(Graph& g, const Node& node, Gradients& gradients) {
  gradients.contribute(node.inputs[0], g.add("relu2_backward", {}, {gradients.of(node.outputs[0]), node.inputs[0]})[0]);
}

std::vector<Example> examples() {
  return {{{}, {{{3, 37}, DType::fp32, -6, 6}}}, {{}, {{{64}, DType::fp32, -12, 12}}}};
}

}  // namespace

std::vector<Op> activation_ops() {
  return {{.name = "gelu",
           .summary = "a = h (1 + tanh(sqrt(2 / pi) (h + 0.044715 h^3))) / 2",
           .infer = infer,
           .backward = gelu_backward,
           .cost = cost,
           .cpu = cpu<Gelu>,
           .cuda = cuda::gelu,
           .examples = examples,
           .in_place = {{0, 0}},
           .slots = {.largest = 1},
           .function = ActivationKind::gelu,
           .recompute = Recompute::activations},
          {.name = "gelu_backward",
           .summary = "dh = da gelu'(h)",
           .infer = infer,
           .cost = cost,
           .cpu = cpu_backward<Gelu>,
           .cuda = cuda::gelu_backward,
           .in_place = {{0, 0}, {0, 1}},
           .slots = {.largest = 1},
           .derivative_of = ActivationKind::gelu},
          {.name = "relu2",
           .summary = "a = relu(h)^2",
           .infer = infer,
           .backward = relu2_backward,
           .cost = cost,
           .cpu = cpu<Relu2>,
           .cuda = cuda::relu2,
           .examples = examples,
           .in_place = {{0, 0}},
           .slots = {.largest = 1},
           .function = ActivationKind::relu2,
           .recompute = Recompute::activations},
          {.name = "relu2_backward",
           .summary = "dh = da 2 relu(h)",
           .infer = infer,
           .cost = cost,
           .cpu = cpu_backward<Relu2>,
           .cuda = cuda::relu2_backward,
           .in_place = {{0, 0}, {0, 1}},
           .slots = {.largest = 1},
           .derivative_of = ActivationKind::relu2}};
}

}  // namespace llm
