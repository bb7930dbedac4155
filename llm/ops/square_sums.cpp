// The Euclidean norm of all gradients together, in two steps, between which several ranks tell each other their sums.
//   square_sums    gradients, or the pieces of them that this rank owns (absent: none) -> (ranks, slots), of which this
//                  rank's row gets the sum of the squares of each block of kGradientNormBlock floats, and 0 for blocks
//                  of other ranks. Attributes: "rank", "ranks", "slots", and "first_slots", the slot of each input's
//                  first block.
//   gradient_norm  (ranks, slots) -> (1), the root of all sums together
// The squares of a block are added in fp32, the blocks' sums in double and in the order of the slots, so the bits do
// not depend on the number of threads or ranks.
#include <algorithm>
#include <cmath>

#include "llm/base/rounding.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"
#include "llm/ops/square_sums.h"

namespace llm {
namespace {

void infer_sums(Graph& g, Node& node) {
  const Attributes& a = node.attributes;
  const auto first = a.list("first_slots");
  if (first.size() != node.inputs.size())
    fail("square_sums: ", first.size(), " slots for ", node.inputs.size(), " inputs");
  for (size_t i = 0; i < first.size(); ++i)
    if (node.inputs[i] != kNone &&
        (first[i] < 0 || first[i] + square_sum_blocks(g.shape(node.inputs[i]).elements()) > a.integer("slots")))
      fail("square_sums: ", g.tensor(node.inputs[i]).name, " has more blocks than slots");
  if (a.integer("rank") < 0 || a.integer("rank") >= a.integer("ranks")) fail("square_sums: no such rank");
  g.add_output(node, "", DType::fp32, {a.integer("ranks"), a.integer("slots")});
}

Cost cost_sums(const Graph& g, const Node& node) {
  double elements = 0;
  for (TensorId id : node.inputs) elements += id == kNone ? 0 : static_cast<double>(g.shape(id).elements());
  Cost c = streaming_cost(g, node, 2 * elements);
  c.bytes_written = static_cast<double>(node.attributes.integer("slots")) * 4;
  return c;
}

void sums_cpu(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const auto first = a.list("first_slots");
  const int64_t slots = a.integer("slots");
  float* const row = call.out(0) + a.integer("rank") * slots;
  if (a.integer("ranks") > 1) std::fill_n(row, slots, 0.0f);
  const auto size_of = [&](size_t i) { return call.has_input(i) ? call.in_shape(i).elements() : 0; };
  const auto sum_block = [&](size_t i, int64_t, int64_t begin, int64_t end) {
    const float* x = call.in(i);
    simd::Vec squares{};
    for_vectors(end - begin, [&](int64_t c, auto lanes) {
      const simd::Vec v = lanes.load(x + begin + c);
      squares += v * v;
    });
    row[first[i] + begin / kGradientNormBlock] = simd::reduce_add(squares);
  };
  call.threads.for_blocks_of(call.node.inputs.size(), size_of, kGradientNormBlock, sum_block);
}

void infer_norm(Graph& g, Node& node) { g.add_output(node, "", DType::fp32, {1}); }

Cost cost_norm(const Graph& g, const Node& node) {
  return streaming_cost(g, node, static_cast<double>(g.shape(node.inputs[0]).elements()));
}

void norm_cpu(const KernelCall& call) {
  const float* sums = call.in(0);
  const int64_t ranks = call.in_shape(0)[0], slots = call.in_shape(0)[1];
  double total = 0;
  for (int64_t s = 0; s < slots; ++s)
    for (int64_t r = 0; r < ranks; ++r) total += static_cast<double>(sums[r * slots + s]);
  *call.out(0) = static_cast<float>(std::sqrt(total));
}

Example::Input fixed(Shape shape, double low = -1) {
  return {.shape = shape, .low = low, .differentiable = false, .keeps_fp32 = true};
}

std::vector<Example> sums_examples() {
  using List = std::vector<int64_t>;
  return {{{{"rank", 0}, {"ranks", 1}, {"slots", 2}, {"first_slots", List{0, 1}}}, {fixed({3, 7}), fixed({40})}},
          {{{"rank", 0}, {"ranks", 1}, {"slots", 3}, {"first_slots", List{0}}}, {fixed({5, 7000})}}};
}
std::vector<Example> norm_examples() { return {{{}, {fixed({1, 3}, 0)}}, {{}, {fixed({3, 2100}, 0)}}}; }

}  // namespace

std::vector<Op> square_sums_ops() {
  return {{.name = "square_sums",
           .summary = "sums of the squares of blocks of the gradients",
           .infer = infer_sums,
           .cost = cost_sums,
           .cpu = sums_cpu,
           .cuda = cuda::square_sums,
           .examples = sums_examples},
          {.name = "gradient_norm",
           .summary = "the norm of all gradients together, of such sums",
           .infer = infer_norm,
           .cost = cost_norm,
           .cpu = norm_cpu,
           .cuda = cuda::gradient_norm,
           .examples = norm_examples}};
}

}  // namespace llm
