// The nodes of row_exchange.h. As in exchange.cpp, a collective is started and waited for; both nodes carry its channel,
// and what is sent is an input of both. Attributes of all: those of the group, and "shape", of the result; or "zigzag",
// a flag: a rank's own rows are two chunks of each sequence.
//   rows_gather_start    own rows -> all rows, which are there after the wait. Its wait has a gradient: sum_rows().
//   rows_scatter_start   partial sums of all rows -> (ranks - 1, elements): the other ranks' sums of the own rows
//   sum_partials         those, partial sums of all rows, [bias (C)] -> own rows: the sum over the ranks in their order,
//                        in fp32, plus the bias
#include "llm/ops/row_exchange.h"

#include <algorithm>

#include "llm/device/communicator.h"
#include "llm/graph/autodiff.h"
#include "llm/ops/chunks.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/exchange.h"
#include "llm/ops/ops.h"
#include "llm/ops/rows.h"

namespace llm {
namespace {

using List = std::vector<int64_t>;

List list_of(const Shape& shape) {
  List list;
  for (int i = 0; i < shape.rank(); ++i) list.push_back(shape[i]);
  return list;
}

bool is_zigzag(const Node& node) { return node.attributes.flag("zigzag"); }

// The shape of the result: of all rows, or of a rank's own.
Shape shape_of(const Graph& g, const Node& node, TensorId from, bool of_all) {
  if (is_zigzag(node)) {
    const Shape s = g.shape(from);
    const int64_t ranks = group_of(node.attributes).ranks, tokens = of_all ? s[1] : s[1] / ranks;
    if (tokens % 2 || (!of_all && s[1] % (2 * ranks)))
      fail(node.op->name, ": sequences of ", s[1], " tokens are not two chunks for each of ", ranks, " ranks");
    return {s[0], of_all ? s[1] * ranks : tokens, s[2]};
  }
  const auto s = node.attributes.list("shape");
  if (s.size() != 3) fail(node.op->name, ": rows are (b, t, C)");
  return {s[0], s[1], s[2]};
}

void check_rows(const Node& node, const Shape& own, const Shape& all) {
  const RankGroup group = group_of(node.attributes);
  if (own.elements() * group.ranks != all.elements() || own.last() != all.last())
    fail(node.op->name, ": ", own.text(), " are not the rows of one of ", group.ranks, " ranks that share ",
         all.text());
}

void infer_gather(Graph& g, Node& node) {
  const Shape all = shape_of(g, node, node.inputs[0], true), own = g.shape(node.inputs[0]);
  check_rows(node, own, all);
  g.add_output(node, "", g.dtype(node.inputs[0]), all);
}

void infer_scatter(Graph& g, Node& node) {
  const RankGroup group = group_of(node.attributes);
  const Shape own = shape_of(g, node, node.inputs[0], false), all = g.shape(node.inputs[0]);
  check_rows(node, own, all);
  if (g.dtype(node.inputs[0]) == DType::int32) fail(node.op->name, ": it takes fp32 or bf16");
  g.add_output(node, "", g.dtype(node.inputs[0]), {std::max(1, group.ranks - 1), own.elements()});
}

void infer_sum(Graph& g, Node& node) {
  const RankGroup group = group_of(node.attributes);
  const Shape own = shape_of(g, node, node.inputs[1], false);
  check_rows(node, own, g.shape(node.inputs[1]));
  if (g.shape(node.inputs[0]) != Shape{std::max(1, group.ranks - 1), own.elements()})
    fail("sum_partials: what other ranks sent is ", g.shape(node.inputs[0]).text());
  if (node.input(2) != kNone && g.shape(node.inputs[2]) != Shape{own.last()}) fail("sum_partials: the bias is (C)");
  g.add_output(node, "", g.dtype(node.inputs[1]), own);
}

void backward_of_sum(Graph& g, const Node& node, Gradients& gradients) {
  const TensorId dy = gradients.of(node.outputs[0]);
  if (is_zigzag(node)) fail("sum_partials: chunks have no gradient");
  const std::string name = g.tensor(node.outputs[0]).name + ".grad.all";
  gradients.contribute(node.inputs[1], gather_rows(g, dy, g.shape(node.inputs[1]), group_of(node.attributes), name));
  if (node.input(2) != kNone) gradients.contribute(node.inputs[2], g.add("bias_gradient", {}, {dy})[0]);
}

double bytes_of(const Graph& g, TensorId id) { return static_cast<double>(g.tensor(id).bytes()); }

Cost cost_of_gather(const Graph& g, const Node& node) {
  const double own = bytes_of(g, node.inputs[0]);
  Cost c{0, own, bytes_of(g, node.outputs[0])};
  c.bytes_sent = own * (group_of(node.attributes).ranks - 1);
  return c;
}

Cost cost_of_scatter(const Graph& g, const Node& node) {
  const double all = bytes_of(g, node.inputs[0]), ranks = group_of(node.attributes).ranks;
  Cost c{0, all * (ranks - 1) / ranks, all * (ranks - 1) / ranks};
  c.bytes_sent = c.bytes_read;
  return c;
}

Cost cost_of_sum(const Graph& g, const Node& node) {
  const double own = bytes_of(g, node.outputs[0]), ranks = group_of(node.attributes).ranks;
  const auto elements = static_cast<double>(g.shape(node.outputs[0]).elements());
  return {elements * (ranks - 1), own * ranks, own};
}

// Calls piece(own, all) for each run of a rank's own elements that are neighbours among all: where they begin there.
template <class Piece>
void for_pieces(const Node& node, const Shape& all, int rank, int ranks, Piece&& piece) {
  const int64_t own = all.elements() / ranks;
  if (!is_zigzag(node)) return piece(0, rank * own, own);
  const Chunks chunks = zigzag_chunks(all[1], rank, ranks);
  const int64_t C = all[2], length = chunks.length * C;
  for (int64_t b = 0; b < all[0]; ++b)
    for (int64_t i = 0; i < 2; ++i) piece((2 * b + i) * length, b * all[1] * C + chunks.firsts[i] * C, length);
}

// From this rank's rows to all ranks' buffers; its own rows are copied to their place by messages to itself.
void start_gather(const KernelCall& call) {
  const RankGroup group = group_of(call.node.attributes);
  Communicator& ranks = ranks_of(call);
  const auto channel = static_cast<int>(call.node.attributes.integer("channel"));
  Exchange& exchange = ranks.prepare(channel);
  const auto size = static_cast<int64_t>(size_of(call.in_dtype(0)));
  auto* const own = const_cast<std::byte*>(call.in<std::byte>(0));
  for (int r = 0; r < group.ranks; ++r) {
    for_pieces(call.node, call.out_shape(0), group.rank, group.ranks, [&](int64_t from, int64_t, int64_t count) {
      exchange.sends.push_back({group.in_run(r), own + from * size, static_cast<size_t>(count * size)});
    });
    for_pieces(call.node, call.out_shape(0), r, group.ranks, [&](int64_t, int64_t to, int64_t count) {
      exchange.receives.push_back(
          {group.in_run(r), call.out<std::byte>(0) + to * size, static_cast<size_t>(count * size)});
    });
  }
  ranks.start(channel);
}

void start_scatter(const KernelCall& call) {
  const RankGroup group = group_of(call.node.attributes);
  Communicator& ranks = ranks_of(call);
  const auto channel = static_cast<int>(call.node.attributes.integer("channel"));
  Exchange& exchange = ranks.prepare(channel);
  const Shape& shape = call.in_shape(0);
  const auto size = static_cast<int64_t>(size_of(call.in_dtype(0)));
  auto* const all = const_cast<std::byte*>(call.in<std::byte>(0));
  auto* received = call.out<std::byte>(0);
  for (int r = 0; r < group.ranks; ++r) {
    if (r == group.rank) continue;
    for_pieces(call.node, shape, r, group.ranks, [&](int64_t, int64_t from, int64_t count) {
      exchange.sends.push_back({group.in_run(r), all + from * size, static_cast<size_t>(count * size)});
    });
    for_pieces(call.node, shape, group.rank, group.ranks, [&](int64_t to, int64_t, int64_t count) {
      exchange.receives.push_back({group.in_run(r), received + to * size, static_cast<size_t>(count * size)});
    });
    received += shape.elements() / group.ranks * size;
  }
  ranks.start(channel);
}

void sum_cpu(const KernelCall& call) {
  const RankGroup group = group_of(call.node.attributes);
  const Shape own = call.out_shape(0);
  const int64_t C = own.last(), elements = own.elements();
  const OwnElements place = own_elements(call.node, call.in_shape(1));
  const float *received = call.in(0), *mine = call.in(1), *bias = call.in(2);
  float* const out = call.out(0);
  call.threads.for_blocks(own.rows(), row_grain(C), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* const mine_of_row = mine + place.place(row * C);
      for_vectors(C, [&](int64_t c, auto lanes) {
        const int64_t i = row * C + c;
        const auto partial = [&](int r) {
          return lanes.load(r == group.rank ? mine_of_row + c
                                            : received + (r - (r > group.rank ? 1 : 0)) * elements + i);
        };
        simd::Vec sum = partial(0);
        for (int r = 1; r < group.ranks; ++r) sum += partial(r);
        lanes.store(out + i, bias ? sum + lanes.load(bias + c) : sum);
      });
    }
  });
}

// What several ranks do is tested with several (test/test_tensor_parallel.cpp); here another rank's sums are given.
std::vector<Example> sum_examples() {
  const auto attributes = [](int rank, int ranks, List shape) {
    return Attributes{{"rank", rank}, {"ranks", ranks}, {"first", 0}, {"stride", 1}, {"shape", std::move(shape)}};
  };
  const auto zigzag = [](int rank, int ranks) {
    return Attributes{{"rank", rank}, {"ranks", ranks}, {"first", 0}, {"stride", 1}, {"zigzag", true}};
  };
  const auto fixed = [](Shape shape) { return Example::Input{.shape = shape, .differentiable = false}; };
  return {{attributes(1, 2, {1, 3, 37}), {fixed({1, 3 * 37}), fixed({2, 3, 37})}},
          {attributes(0, 3, {2, 2, 64}), {fixed({2, 4 * 64}), fixed({3, 4, 64}), fixed({64})}},
          {zigzag(0, 2), {fixed({1, 2 * 4 * 37}), fixed({2, 8, 37})}},
          {zigzag(1, 3), {fixed({2, 2 * 2 * 64}), fixed({2, 6, 64})}}};
}

// Start and wait; `a`: the attributes of both, but for the channel.
TensorId gather(Graph& g, TensorId own, Attributes a, const std::string& name) {
  a.set("channel", ++g.channels);
  const TensorId arriving = g.add("rows_gather_start", a, {own}, name + ".start")[0];
  a.set("arrivals", int64_t{1});
  a.set("gathers_rows", true);
  return g.add("exchange_wait", a, {arriving, own}, name)[0];
}

// Start, wait and sum; `a`: the attributes of start and sum, but for the channel.
TensorId sum(Graph& g, TensorId partial, TensorId bias, const Attributes& a, const std::string& name) {
  Attributes start = a;
  start.set("channel", ++g.channels);
  const TensorId arriving = g.add("rows_scatter_start", start, {partial}, name + ".start")[0];
  const TensorId received = wait_for_exchange(g, g.channels, {arriving}, {partial}, name + ".received")[0];
  return g.add("sum_partials", a, {received, partial, bias}, name)[0];
}

}  // namespace

OwnElements own_elements(const Node& node, const Shape& all) {
  const RankGroup group = group_of(node.attributes);
  const int64_t own = all.elements() / group.ranks;
  if (!is_zigzag(node)) return {group.rank * own, own, 0, own, {0, 0}};
  const Chunks chunks = zigzag_chunks(all[1], group.rank, group.ranks);
  const int64_t C = all[2], sequence = 2 * chunks.length * C;
  return {0,
          sequence,
          all[1] * C - sequence,
          chunks.length * C,
          {chunks.firsts[0] * C, (chunks.firsts[1] - chunks.length) * C}};
}

TensorId gather_rows(Graph& g, TensorId own, Shape all, const RankGroup& group, const std::string& name) {
  Attributes a = group_attributes(group);
  a.set("shape", list_of(all));
  return gather(g, own, a, name);
}

TensorId sum_rows(Graph& g, TensorId partial, TensorId bias, Shape own, const RankGroup& group,
                  const std::string& name) {
  Attributes a = group_attributes(group);
  a.set("shape", list_of(own));
  return sum(g, partial, bias, a, name);
}

TensorId gather_chunks(Graph& g, TensorId own, const RankGroup& group, const std::string& name) {
  Attributes a = group_attributes(group);
  a.set("zigzag", true);
  a.set("recompute", static_cast<int64_t>(Recompute::norms));
  return gather(g, own, a, name);
}

TensorId sum_chunks(Graph& g, TensorId partial, const RankGroup& group, const std::string& name) {
  Attributes a = group_attributes(group);
  a.set("zigzag", true);
  return sum(g, partial, kNone, a, name);
}

std::vector<Op> row_exchange_ops() {
  return {{.name = "rows_gather_start",
           .summary = "sends all ranks of a group this rank's rows",
           .infer = infer_gather,
           .cost = cost_of_gather,
           .cpu = start_gather,
           .cuda = start_gather,
           .cpu_takes_bf16 = true},
          {.name = "rows_scatter_start",
           .summary = "sends each rank of a group this rank's sums of its rows",
           .infer = infer_scatter,
           .cost = cost_of_scatter,
           .cpu = start_scatter,
           .cuda = start_scatter,
           .cpu_takes_bf16 = true},
          {.name = "sum_partials",
           .summary = "adds several ranks' sums of this rank's rows, and a bias",
           .infer = infer_sum,
           .backward = backward_of_sum,
           .cost = cost_of_sum,
           .cpu = sum_cpu,
           .cuda = cuda::sum_partials,
           .examples = sum_examples}};
}

}  // namespace llm
