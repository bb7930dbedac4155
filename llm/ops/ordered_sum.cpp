// The sums over the ranks' gradients, in the order of a fixed tree (llm/base/tree_sum.h), by these kernels alone.
//   ordered_sum   [what other ranks sent], then own sums as reduce_scatter_start takes them -> for each tensor the sum
//                 of the piece that this rank owns (pieces.h); absent where it owns none. The last
//                 "in_place" sums lie where that piece of the last own sum was, the others are tensors of their own,
//                 (elements). Other attributes: those of reduce_scatter_start, and "merges": after each sum, in the
//                 order of the ranks, how often the last two are added.
//   fold          pairs (saved, tensor) -> tensor = saved + tensor, in place; with "save": saved = tensor
// A rank that has several virtual ranks saves what it has added and folds it into what follows.
#include "llm/ops/ordered_sum.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"
#include "llm/ops/pieces.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

void infer_sum(Graph& g, Node& node) {
  const Pieces pieces(node.attributes);
  const auto own = static_cast<size_t>(node.attributes.list("sums")[static_cast<size_t>(pieces.rank())]);
  if (node.inputs.size() != 1 + own * pieces.tensors() || own == 0 || own > kMostOwnSums)
    fail("ordered_sum: ", node.inputs.size() - 1, " inputs for ", own, " sums of ", pieces.tensors(), " tensors");
  int64_t total = 0, depth = 0;
  for (const int64_t sums : node.attributes.list("sums")) total += sums;
  const auto merges = node.attributes.list("merges");
  if (static_cast<int64_t>(merges.size()) != total || total > kMostSums)
    fail("ordered_sum: ", total, " sums and ", merges.size(), " merges; it takes at most ", kMostSums);
  for (const int64_t merge : merges)
    if (depth += 1 - merge; depth < 1 || depth >= kMostOpenSums) fail("ordered_sum: ", depth, " open sums");
  if (depth != 1) fail("ordered_sum: ", depth, " sums are left");
  for (size_t t = 0; t < pieces.tensors(); ++t) {
    if (pieces.mine(t) == 0) {
      node.outputs.push_back(kNone);
      continue;
    }
    const TensorId last = node.inputs[1 + (own - 1) * pieces.tensors() + t];
    const Role role = g.tensor(last).role;
    const TensorId out = g.add_output(node, "", DType::fp32, {pieces.mine(t)});
    if (static_cast<int64_t>(t) >= static_cast<int64_t>(pieces.tensors()) - node.attributes.integer("in_place", 0))
      g.tensor(out).alias = last, g.tensor(out).offset = pieces.begin(t, pieces.rank()), g.tensor(out).role = role;
  }
}

Cost cost_sum(const Graph&, const Node& node) {
  const Pieces pieces(node.attributes);
  double sums = 0, elements = 0;
  for (const int64_t s : node.attributes.list("sums")) sums += static_cast<double>(s);
  for (size_t t = 0; t < pieces.tensors(); ++t) elements += static_cast<double>(pieces.mine(t));
  return {elements * (sums - 1), elements * sums * 4, elements * 4};
}

void sum_cpu(const KernelCall& call) {
  const Pieces pieces(call.node.attributes);
  const auto merges = call.node.attributes.list("merges");
  const OrderedSums order(call.node.attributes);
  const float* received = call.in(0);
  const auto size_of = [&](size_t t) { return pieces.mine(t); };
  call.threads.for_blocks_of(pieces.tensors(), size_of, 4096, [&](size_t t, int64_t, int64_t begin, int64_t end) {
    const float* from[kMostSums];
    for (int k = 0; k < order.count; ++k)
      from[k] = order.source[k] < 0 ? call.in(1 + static_cast<size_t>(-1 - order.source[k]) * pieces.tensors() + t) +
                                          pieces.begin(t, pieces.rank())
                                    : received + order.source[k] * pieces.row() + pieces.place(t);
    float* const out = call.out(t);
    for_vectors(end - begin, [&](int64_t c, auto lanes) {
      const int64_t i = begin + c;
      simd::Vec open[kMostOpenSums];
      int top = 0;
      for (int k = 0; k < order.count; ++k) {
        open[top++] = lanes.load(from[k] + i);
        for (int64_t m = 0; m < merges[static_cast<size_t>(k)]; ++m, --top) open[top - 2] += open[top - 1];
      }
      lanes.store(out + i, open[0]);
    });
  });
}

void infer_fold(Graph& g, Node& node) {
  if (node.inputs.size() % 2) fail("fold: it takes pairs of tensors");
  const std::vector<TensorId> inputs = node.inputs;
  for (size_t i = 0; i < inputs.size(); i += 2) {
    if (g.shape(inputs[i]) != g.shape(inputs[i + 1])) fail("fold: the shapes of a pair differ");
    const TensorId id = inputs[node.attributes.flag("save") ? i : i + 1];
    const Tensor into = g.tensor(id);
    const TensorId out = g.add_output(node, "", into.dtype, into.shape);
    g.tensor(out).alias = id, g.tensor(out).role = into.role;
  }
}

Cost cost_fold(const Graph& g, const Node& node) {
  Cost c;
  const bool save = node.attributes.flag("save");
  for (size_t i = 0; i < node.inputs.size(); i += 2) {
    const auto bytes = static_cast<double>(g.tensor(node.inputs[i]).bytes());
    c.bytes_read += save ? bytes : 2 * bytes, c.bytes_written += bytes, c.flops += save ? 0 : bytes / 4;
  }
  return c;
}

void fold_cpu(const KernelCall& call) {
  const bool save = call.node.attributes.flag("save");
  const auto size_of = [&](size_t pair) { return call.in_shape(2 * pair).elements(); };
  const auto fold = [&](size_t pair, int64_t, int64_t begin, int64_t end) {
    const float *saved = call.in(2 * pair) + begin, *tensor = call.in(2 * pair + 1) + begin;
    float* const out = call.out(pair) + begin;
    for_vectors(end - begin, [&](int64_t i, auto lanes) {
      lanes.store(out + i, save ? lanes.load(tensor + i) : lanes.load(saved + i) + lanes.load(tensor + i));
    });
  };
  call.threads.for_blocks_of(call.node.inputs.size() / 2, size_of, 16384, fold);
}

Example::Input fixed(Shape shape, Role role = Role::activation) {
  return {.shape = shape, .role = role, .differentiable = false, .keeps_fp32 = true};
}

// Rank 1 of 3, which owns elements 8 to 12 of the first tensor and nothing of the second; of five virtual ranks the
// first and the last rank have two.
std::vector<Example> sum_examples() {
  using List = std::vector<int64_t>;
  const auto example = [](List sums, List merges) {
    Example e{{{"channel", 1},
               {"rank", 1},
               {"ranks", 3},
               {"bounds", List{0, 8, 13, 21, 0, 6, 6, 6}},
               {"sums", sums},
               {"merges", merges}},
              {fixed({sums[0] + sums[2], 8})}};
    for (int64_t s = 0; s < sums[1]; ++s) e.inputs.push_back(fixed({3, 7})), e.inputs.push_back(fixed({6}));
    return e;
  };
  return {example({1, 1, 1}, {0, 1, 1}), example({1, 2, 1}, {0, 1, 0, 2})};
}
std::vector<Example> fold_examples() {
  const auto example = [](bool save) {
    return Example{{{"save", save}},
                   {fixed({3, 7}, Role::state), fixed({3, 7}, Role::state), fixed({20000}, Role::state),
                    fixed({20000}, Role::state)}};
  };
  return {example(false), example(true)};
}

}  // namespace

std::vector<Op> ordered_sum_ops() {
  return {{.name = "ordered_sum",
           .summary = "the sum of all ranks' gradients, of the pieces owned here",
           .infer = infer_sum,
           .cost = cost_sum,
           .cpu = sum_cpu,
           .cuda = cuda::ordered_sum,
           .examples = sum_examples},
          {.name = "fold",
           .summary = "adds the gradients of several virtual ranks",
           .infer = infer_fold,
           .cost = cost_fold,
           .cpu = fold_cpu,
           .cuda = cuda::fold,
           .examples = fold_examples}};
}

}  // namespace llm
