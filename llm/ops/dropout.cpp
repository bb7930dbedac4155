// dropout: y = 0 with the given probability, otherwise x / (1 - probability) (Srivastava et al. 2014). Its backward
// pass is the same op on dy, with the same mask, which is computed again (dropout_mask.h) instead of kept.
// Attributes: probability; stream, a different number for each place in a model; where x is a part of a batch, "first_row"
// and "first_group", the sample and the group of four elements of it with which x begins; where the tokens of the
// samples in that batch are chunks of whole ones (chunks.h), "firsts" and "chunk", the tokens of a chunk.
#include "llm/graph/autodiff.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/dropout_mask.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

void infer(Graph& g, Node& node) {
  const double p = node.attributes.number("probability");
  if (!(p >= 0 && p < 1)) fail("dropout: the probability must be in [0, 1), not ", p);
  if (node.attributes.has("firsts") && g.shape(node.inputs[0]).last() % 4)
    fail("dropout of parts of sequences needs channels that are a multiple of 4");
  g.add_output(node, "", g.dtype(node.inputs[0]), g.shape(node.inputs[0]));
}

void backward(Graph& g, const Node& node, Gradients& gradients) {
  gradients.contribute(node.inputs[0], g.add("dropout", node.attributes, {gradients.of(node.outputs[0])})[0]);
}

Cost cost(const Graph& g, const Node& node) {
  return streaming_cost(g, node, static_cast<double>(g.shape(node.outputs[0]).elements()));
}

void cpu(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const DropoutMask mask(a.number("probability"), a.integer("stream"));
  const auto scale = static_cast<float>(1 / (1 - a.number("probability")));
  const DropoutPlace place(a, call.out_shape(0).last());
  const float* x = call.in(0);
  float* y = call.out(0);
  const DropoutGroups of(call.out_shape(0));
  call.threads.for_blocks(of.rows * of.groups, 2048, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t row = g / of.groups, group = g % of.groups, first = row * of.elements + 4 * group;
      const int64_t count = std::min<int64_t>(4, of.elements - 4 * group);
      const auto bits = mask.bits(call.step, place.row(row), place.group(group));
      for (int64_t i = 0; i < count; ++i)
        y[first + i] = bits[static_cast<size_t>(i)] >= mask.threshold ? x[first + i] * scale : 0.0f;
    }
  });
}

std::vector<Example> examples() {
  return {
      {{{"probability", 0.25}, {"stream", 3}}, {{{3, 37}}}},
      {{{"probability", 0.5}, {"stream", 0}}, {{{64}}}},
      {{{"probability", 0.3}, {"stream", 5}, {"first_row", 2}, {"first_group", 3}}, {{{2, 24}}}},
      {{{"probability", 0.3}, {"stream", 5}, {"firsts", std::vector<int64_t>{3, 9}}, {"chunk", 3}}, {{{2, 6, 8}}}},
      {{{"probability", 0.3}, {"stream", 5}, {"first_group", 8}, {"firsts", std::vector<int64_t>{3, 9}}, {"chunk", 6}},
       {{{1, 4, 8}}}}};
}

}  // namespace

std::vector<Op> dropout_ops() {
  return {{.name = "dropout",
           .summary = "y = x / (1 - probability), or 0 by chance",
           .infer = infer,
           .backward = backward,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::dropout,
           .examples = examples,
           .in_place = {{0, 0}},
           .recompute = Recompute::block}};
}

}  // namespace llm
