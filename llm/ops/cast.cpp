// cast: the same values in another precision, rounded to the nearest. Attribute "bf16", a flag: to bf16, otherwise to
// fp32. Most CPU kernels know fp32 alone; the pass llm/graph/cast_for_cpu.cpp puts this op around them in a bf16 run.
#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  if (g.dtype(node.inputs[0]) == DType::int32) fail("cast: it takes fp32 and bf16, not int32");
  g.add_output(node, "", node.attributes.flag("bf16") ? DType::bf16 : DType::fp32, g.shape(node.inputs[0]));
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  const bool narrow = g.dtype(node.inputs[0]) == DType::bf16;
  gradients.contribute(node.inputs[0], g.add("cast", {{"bf16", narrow}}, {gradients.of(node.outputs[0])})[0]);
}

Cost cost(const Graph& g, const Node& node) { return streaming_cost(g, node, 0); }

template <class From, class To>
void convert(const KernelCall& call) {
  const From* x = call.in<From>(0);
  To* y = call.out<To>(0);
  call.threads.for_blocks(call.out_shape(0).elements(), 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if constexpr (std::is_same_v<To, bf16>)
        y[i] = nearest_bf16(to_float(x[i]));
      else
        y[i] = to_float(x[i]);
    }
  });
}

void cpu(const KernelCall& call) {
  const bool from = call.in_dtype(0) == DType::bf16, to = call.out_dtype(0) == DType::bf16;
  if (from && to) convert<bf16, bf16>(call);
  if (from && !to) convert<bf16, float>(call);
  if (!from && to) convert<float, bf16>(call);
  if (!from && !to) convert<float, float>(call);
}

// No example casts to bf16: rounding makes the function a staircase, of which finite differences give no gradient.
std::vector<Example> examples() {
  const auto example = [](bool narrow, DType from, Shape shape) -> Example {
    return {{{"bf16", narrow}}, {{.shape = shape, .dtype = from, .keeps_fp32 = true}}};
  };
  return {example(false, DType::fp32, {3, 37}), example(false, DType::bf16, {3, 37}),
          example(false, DType::bf16, {4, 64})};
}

}  // namespace

std::vector<Op> cast_ops() {
  return {{.name = "cast",
           .summary = "the same values in bf16 or fp32",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::cast,
           .examples = examples,
           .cpu_takes_bf16 = true}};
}

}  // namespace llm
