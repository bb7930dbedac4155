// combine: y = a x + b z, element by element, for many pairs of tensors at once.
//   x, z of each pair -> y of each pair, all three of one shape. Attributes: a, b.
#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  if (node.inputs.empty() || node.inputs.size() % 2) fail("combine: it takes pairs of tensors");
  for (size_t i = 0; i < node.inputs.size(); i += 2) {
    const Tensor x = g.tensor(node.inputs[i]), z = g.tensor(node.inputs[i + 1]);
    if (x.shape != z.shape || x.dtype != z.dtype || x.dtype != g.dtype(node.inputs[0]))
      fail("combine: ", x.name, " ", x.shape.text(), " and ", z.name, " ", z.shape.text(), " are not of one kind");
    g.add_output(node, "", x.dtype, x.shape);
  }
}

Cost cost(const Graph& g, const Node& node) {
  double elements = 0;
  for (TensorId id : node.outputs) elements += static_cast<double>(g.shape(id).elements());
  return streaming_cost(g, node, 3 * elements);
}

// The compiler may contract either product of a sum of two products into an fma, which changes the last bit. As it is
// not inlined, the function is compiled once for all callers, and a block gets the same bits whichever thread takes it.
[[gnu::noinline]] void combine_block(const float* x, const float* z, float* y, int64_t count, float a, float b) {
  for_vectors(count, [&](int64_t i, auto lanes) { lanes.store(y + i, lanes.load(x + i) * a + lanes.load(z + i) * b); });
}

void cpu(const KernelCall& call) {
  const auto a = static_cast<float>(call.node.attributes.number("a"));
  const auto b = static_cast<float>(call.node.attributes.number("b"));
  const auto size_of = [&](size_t k) { return call.out_shape(k).elements(); };
  const auto combine = [&](size_t k, int64_t, int64_t begin, int64_t end) {
    combine_block(call.in(2 * k) + begin, call.in(2 * k + 1) + begin, call.out(k) + begin, end - begin, a, b);
  };
  call.threads.for_blocks_of(call.node.outputs.size(), size_of, 8192, combine);
}

std::vector<Example> examples() {
  const auto input = [](Shape shape) { return Example::Input{.shape = shape, .differentiable = false}; };
  return {{{{"a", 2}, {"b", -0.5}}, {input({5, 7}), input({5, 7})}},
          {{{"a", -1.5}, {"b", 1}}, {input({64}), input({64}), input({33, 3}), input({33, 3})}},
          {{{"a", 0.7}, {"b", 0.3}}, {input({130, 129}), input({130, 129})}}};
}

// Lets each y lie over its x or its z, for the first 16 pairs of a node.
std::vector<InPlace> over_inputs() {
  std::vector<InPlace> pairs;
  for (int k = 0; k < 16; ++k) pairs.insert(pairs.end(), {{k, 2 * k}, {k, 2 * k + 1}});
  return pairs;
}

}  // namespace

std::vector<Op> combine_ops() {
  return {{.name = "combine",
           .summary = "y = a x + b z, of many pairs",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::combine,
           .examples = examples,
           .in_place = over_inputs()}};
}

}  // namespace llm
