// swiglu: a = silu(gate) up, and geglu: a = gelu(gate) up (Shazeer 2020; gelu in its tanh form), where a row of h is gate
// (F), then up (F), the outputs of one linear layer.
//   h (B, T, 2 F) -> a (B, T, F);   backward: (da, h) -> dh
#include "llm/graph/autodiff.h"
#include "llm/ops/activation_functions.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

struct Silu {
  static simd::Vec value(simd::Vec gate, simd::Vec up) { return gate * simd::sigmoid(gate) * up; }
  static void gradients(simd::Vec d, simd::Vec gate, simd::Vec up, simd::Vec& d_gate, simd::Vec& d_up) {
    const simd::Vec s = simd::sigmoid(gate);
    d_gate = d * up * s * (1.0f + gate * (1.0f - s)), d_up = d * gate * s;
  }
};

struct GeluGate {
  static simd::Vec value(simd::Vec gate, simd::Vec up) { return Gelu::value(gate) * up; }
  static void gradients(simd::Vec d, simd::Vec gate, simd::Vec up, simd::Vec& d_gate, simd::Vec& d_up) {
    const Both both = Gelu::both(gate);
    d_gate = d * up * both.derivative, d_up = d * both.value;
  }
};

void infer(Graph& g, Node& node) {
  const Shape h = g.shape(node.inputs[0]);
  if (h.rank() != 3 || h.last() % 2) fail(node.op->name, ": h must be (B, T, 2 F), not ", h.text());
  g.add_output(node, "", g.dtype(node.inputs[0]), {h[0], h[1], h[2] / 2});
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  gradients.contribute(node.inputs[0], g.add(concat(node.op->name, "_backward"), {},
                                             {gradients.of(node.outputs[0]), node.inputs[0]})[0]);
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, 10.0 * static_cast<double>(g.shape(node.inputs[0]).elements()));
}

template <class Gate>
void cpu(const KernelCall& call) {
  const int64_t F = call.out_shape(0).last(), h_stride = call.in_stride(0), a_stride = call.out_stride(0);
  const float* h = call.in(0);
  float* a = call.out(0);
  call.threads.for_blocks(call.out_shape(0).rows(), row_grain(3 * F), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float *gate = h + r * h_stride, *up = gate + F;
      for_vectors(F, [&](int64_t i, auto lanes) {
        lanes.store(a + r * a_stride + i, Gate::value(lanes.load(gate + i), lanes.load(up + i)));
      });
    }
  });
}

void infer_backward(Graph& g, Node& node) { g.add_output(node, "", g.dtype(node.inputs[1]), g.shape(node.inputs[1])); }

template <class Gate>
void cpu_backward(const KernelCall& call) {
  const int64_t F = call.in_shape(0).last();
  const int64_t da_stride = call.in_stride(0), h_stride = call.in_stride(1), dh_stride = call.out_stride(0);
  const float *da = call.in(0), *h = call.in(1);
  float* dh = call.out(0);
  call.threads.for_blocks(call.in_shape(0).rows(), row_grain(5 * F), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float *gate = h + r * h_stride, *up = gate + F;
      float *d_gate = dh + r * dh_stride, *d_up = d_gate + F;
      for_vectors(F, [&](int64_t i, auto lanes) {
        simd::Vec of_gate, of_up;
        Gate::gradients(lanes.load(da + r * da_stride + i), lanes.load(gate + i), lanes.load(up + i), of_gate, of_up);
        lanes.store(d_gate + i, of_gate);
        lanes.store(d_up + i, of_up);
      });
    }
  });
}

std::vector<Example> examples() {
  return {{{}, {{{2, 3, 14}, DType::fp32, -4, 4}}}, {{}, {{{1, 2, 64}, DType::fp32, -9, 9}}}};
}

}  // namespace

std::vector<Op> swiglu_ops() {
  const auto rows = [](const char* name, const char* summary, const char* backward_name, auto gate,
                       void (*on_cuda)(const KernelCall&), void (*backward_on_cuda)(const KernelCall&)) {
    using Gate = decltype(gate);
    return std::vector<Op>{{.name = name,
                            .summary = summary,
                            .infer = infer,
                            .backward = backward,
                            .cost = cost,
                            .cpu = cpu<Gate>,
                            .cuda = on_cuda,
                            .examples = examples,
                            .slots = {.largest = 1},
                            .recompute = Recompute::activations,
                            .cpu_takes_strides = true},
                           {.name = backward_name,
                            .summary = "d_gate, d_up",
                            .infer = infer_backward,
                            .cost = cost,
                            .cpu = cpu_backward<Gate>,
                            .cuda = backward_on_cuda,
                            .in_place = {{0, 1}},
                            .slots = {.largest = 1},
                            .cpu_takes_strides = true}};
  };
  std::vector<Op> all =
      rows("swiglu", "a = silu(gate) up", "swiglu_backward", Silu(), cuda::swiglu, cuda::swiglu_backward);
  for (Op& op : rows("geglu", "a = gelu(gate) up", "geglu_backward", GeluGate(), cuda::geglu, cuda::geglu_backward))
    all.push_back(std::move(op));
  return all;
}

}  // namespace llm
