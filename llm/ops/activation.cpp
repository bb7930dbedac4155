// gelu and relu2, element by element: h -> a. Their backward ops: (da, h) -> dh.
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

void backward(Graph& g, const Node& node, Gradients& gradients) {
  const std::string name = concat(node.op->name, "_backward");
  gradients.contribute(node.inputs[0], g.add(name, {}, {gradients.of(node.outputs[0]), node.inputs[0]})[0]);
}

std::vector<Example> examples() {
  return {{{}, {{{3, 37}, DType::fp32, -6, 6}}}, {{}, {{{64}, DType::fp32, -12, 12}}}};
}

using Kernel = void(const KernelCall&);

template <class Function>
void add_rows(std::vector<Op>& rows, ActivationKind kind, const char* formula, Kernel* cuda, const char* backward_name,
              const char* backward_formula, Kernel* cuda_backward) {
  rows.push_back({.name = name_of(kind),
                  .summary = formula,
                  .infer = infer,
                  .backward = backward,
                  .cost = cost,
                  .cpu = cpu<Function>,
                  .cuda = cuda,
                  .examples = examples,
                  .in_place = {{0, 0}},
                  .slots = {.largest = 1},
                  .function = kind,
                  .recompute = Recompute::activations});
  rows.push_back({.name = backward_name,
                  .summary = backward_formula,
                  .infer = infer,
                  .cost = cost,
                  .cpu = cpu_backward<Function>,
                  .cuda = cuda_backward,
                  .in_place = {{0, 0}, {0, 1}},
                  .slots = {.largest = 1},
                  .derivative_of = kind});
}

}  // namespace

std::vector<Op> activation_ops() {
  std::vector<Op> rows;
  add_rows<Gelu>(rows, ActivationKind::gelu, "a = h (1 + tanh(sqrt(2 / pi) (h + 0.044715 h^3))) / 2", cuda::gelu,
                 "gelu_backward", "dh = da gelu'(h)", cuda::gelu_backward);
  add_rows<Relu2>(rows, ActivationKind::relu2, "a = relu(h)^2", cuda::relu2, "relu2_backward", "dh = da 2 relu(h)",
                  cuda::relu2_backward);
  return rows;
}

}  // namespace llm
