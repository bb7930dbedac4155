// What ranks send each other within a step. A collective is two nodes: one starts it, and `exchange_wait` ends it, so
// that the nodes between them run meanwhile. Both carry the number of a channel (llm/device/communicator.h), and
// everything that is sent is an input of both, so that the memory plan keeps it until the wait. Which rank owns what:
// pieces.h.
//   reduce_scatter_start   own sums of all tensors -> row r: what the r-th other rank's sum is, of the pieces owned here
//   all_gather_start       tensors, of which the own pieces are complete -> the same tensors, in place, all complete
//   piece_gather_start     the own pieces alone (absent: none is owned) -> whole tensors, whose shapes are the attribute
//                          "shapes": of each tensor the number of its axes, then their lengths
//   exchange_wait          what is to arrive, then what is being sent -> the first "arrivals" inputs, in place
// A reduce-scatter is an all-to-all of pieces and the op ordered_sum. Its attribute "sums" says how many sums each rank
// contributes (llm/base/tree_sum.h): the inputs are all tensors of the first sum, then all of the second and so on.
#include "llm/ops/exchange.h"

#include "llm/device/communicator.h"
#include "llm/graph/autodiff.h"
#include "llm/ops/expert_messages.h"
#include "llm/ops/ops.h"
#include "llm/ops/pieces.h"
#include "llm/ops/row_exchange.h"

namespace llm {
namespace {

std::byte* piece_of(const KernelCall& call, size_t input, int64_t first) {
  auto* const tensor = const_cast<std::byte*>(call.in<std::byte>(input));
  return tensor + static_cast<size_t>(first) * size_of(call.in_dtype(input));
}

void check_bounds(const Graph& g, const Node& node, const Pieces& pieces) {
  if (pieces.tensors() == 0 || node.inputs.size() % pieces.tensors() != 0)
    fail(node.op->name, ": pieces of ", pieces.tensors(), " tensors for ", node.inputs.size(), " inputs");
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    const size_t t = i % pieces.tensors();
    if (pieces.begin(t, 0) != 0 || pieces.begin(t, pieces.ranks()) != g.shape(node.inputs[i]).elements())
      fail(node.op->name, ": the pieces of ", g.tensor(node.inputs[i]).name, " do not make up the tensor");
  }
}

void infer_reduce_scatter(Graph& g, Node& node) {
  const Pieces pieces(node.attributes);
  check_bounds(g, node, pieces);
  const auto sums = node.attributes.list("sums");
  if (static_cast<int64_t>(sums.size()) != pieces.ranks() ||
      sums[static_cast<size_t>(pieces.rank())] * static_cast<int64_t>(pieces.tensors()) !=
          static_cast<int64_t>(node.inputs.size()))
    fail("reduce_scatter_start: the numbers of sums do not match its inputs");
  for (TensorId id : node.inputs)
    if (g.dtype(id) != DType::fp32) fail("reduce_scatter_start: it adds fp32");
  int64_t rows = -sums[static_cast<size_t>(pieces.rank())];
  for (const int64_t of_rank : sums) rows += of_rank;
  g.add_output(node, "", DType::fp32, {std::max<int64_t>(1, rows), std::max<int64_t>(4, pieces.row())});
}

Cost cost_reduce_scatter(const Graph& g, const Node& node) {
  const Pieces pieces(node.attributes);
  Cost c;
  for (size_t i = 0; i < node.inputs.size(); ++i)
    c.bytes_sent += static_cast<double>(g.shape(node.inputs[i]).elements() - pieces.mine(i % pieces.tensors())) * 4;
  c.bytes_read = c.bytes_sent;
  c.bytes_written = static_cast<double>(g.tensor(node.outputs[0]).bytes());
  return c;
}

void reduce_scatter(const KernelCall& call) {
  const Pieces pieces(call.node.attributes);
  Communicator& ranks = ranks_of(call);
  const auto sums = call.node.attributes.list("sums");
  const auto channel = static_cast<int>(call.node.attributes.integer("channel"));
  Exchange& exchange = ranks.prepare(channel);
  const size_t tensors = pieces.tensors();
  float* row = call.out(0);
  for (int64_t r = 0; r < pieces.ranks(); ++r) {
    if (r == pieces.rank()) continue;
    const int peer = pieces.in_run(r);
    for (size_t i = 0; i < call.node.inputs.size(); ++i)
      if (const int64_t count = pieces.count(i % tensors, r))
        exchange.sends.push_back(
            {peer, piece_of(call, i, pieces.begin(i % tensors, r)), static_cast<size_t>(count) * sizeof(float)});
    for (int64_t s = 0; s < sums[static_cast<size_t>(r)]; ++s, row += pieces.row())
      for (size_t t = 0; t < tensors; ++t)
        if (const int64_t count = pieces.mine(t))
          exchange.receives.push_back({peer, row + pieces.place(t), static_cast<size_t>(count) * sizeof(float)});
  }
  ranks.start(channel);
}

void infer_all_gather(Graph& g, Node& node) {
  check_bounds(g, node, Pieces(node.attributes));
  const std::vector<TensorId> inputs = node.inputs;
  for (const TensorId id : inputs) {
    const Tensor whole = g.tensor(id);
    const TensorId out = g.add_output(node, "", whole.dtype, whole.shape);
    g.tensor(out).alias = id, g.tensor(out).role = whole.role;
  }
}

Cost cost_all_gather(const Graph& g, const Node& node) {
  const Pieces pieces(node.attributes);
  Cost c;
  for (size_t t = 0; t < node.inputs.size(); ++t) {
    const auto bytes = static_cast<double>(size_of(g.dtype(node.inputs[t])));
    const auto mine = static_cast<double>(pieces.mine(t)) * bytes;
    c.bytes_sent += mine * static_cast<double>(pieces.ranks() - 1);
    c.bytes_read += mine;
    c.bytes_written += std::max(1.0, static_cast<double>(g.shape(node.inputs[t]).elements()) * bytes - mine);
  }
  return c;
}

// Sends the own piece of each tensor, which lies at mine(tensor), to all ranks, and receives the others' at place(tensor,
// owner). An own piece that lies elsewhere is sent to this rank as well.
template <class Mine, class Place>
void start_gather(const KernelCall& call, const Pieces& pieces, bool lies_elsewhere, Mine mine, Place place) {
  Communicator& ranks = ranks_of(call);
  const auto channel = static_cast<int>(call.node.attributes.integer("channel"));
  Exchange& exchange = ranks.prepare(channel);
  for (int64_t r = 0; r < pieces.ranks(); ++r) {
    if (r == pieces.rank() && !lies_elsewhere) continue;
    const int peer = pieces.in_run(r);
    for (size_t t = 0; t < pieces.tensors(); ++t) {
      const auto bytes = [&](int64_t owner) {
        return static_cast<size_t>(pieces.count(t, owner)) * size_of(call.out_dtype(t));
      };
      if (pieces.mine(t)) exchange.sends.push_back({peer, mine(t), bytes(pieces.rank())});
      if (pieces.count(t, r)) exchange.receives.push_back({peer, place(t, r), bytes(r)});
    }
  }
  ranks.start(channel);
}

void all_gather(const KernelCall& call) {
  const Pieces pieces(call.node.attributes);
  if (pieces.ranks() == 1) return;
  const auto place = [&](size_t t, int64_t owner) { return piece_of(call, t, pieces.begin(t, owner)); };
  start_gather(
      call, pieces, false, [&](size_t t) { return place(t, pieces.rank()); }, place);
}

void infer_piece_gather(Graph& g, Node& node) {
  const Pieces pieces(node.attributes);
  const auto shapes = node.attributes.list("shapes");
  if (node.inputs.size() != pieces.tensors()) fail("piece_gather_start: a piece of each tensor is needed");
  const DType dtype = node.attributes.flag("bf16") ? DType::bf16 : DType::fp32;
  size_t at = 0;
  for (size_t t = 0; t < pieces.tensors(); ++t) {
    Shape shape = shapes[at] == 1 ? Shape{shapes[at + 1]} : Shape{shapes[at + 1], shapes[at + 2]};
    at += 1 + static_cast<size_t>(shapes[at]);
    const TensorId piece = node.inputs[t];
    if (pieces.begin(t, pieces.ranks()) != shape.elements() ||
        pieces.mine(t) != (piece == kNone ? 0 : g.shape(piece).elements()) ||
        (piece != kNone && g.dtype(piece) != dtype))
      fail("piece_gather_start: piece ", static_cast<int64_t>(t), " does not fit its tensor");
    g.add_output(node, "", dtype, shape);
  }
}

Cost cost_piece_gather(const Graph& g, const Node& node) {
  const Pieces pieces(node.attributes);
  Cost c;
  for (size_t t = 0; t < node.outputs.size(); ++t) {
    const auto bytes = static_cast<double>(size_of(g.dtype(node.outputs[t])));
    c.bytes_read += static_cast<double>(pieces.mine(t)) * bytes;
    c.bytes_sent += static_cast<double>(pieces.mine(t) * (pieces.ranks() - 1)) * bytes;
    c.bytes_written += static_cast<double>(g.tensor(node.outputs[t]).bytes());
  }
  return c;
}

void piece_gather(const KernelCall& call) {
  const Pieces pieces(call.node.attributes);
  const auto place = [&](size_t t, int64_t owner) {
    return call.out<std::byte>(t) + static_cast<size_t>(pieces.begin(t, owner)) * size_of(call.out_dtype(t));
  };
  start_gather(
      call, pieces, true, [&](size_t t) { return piece_of(call, t, 0); }, place);
}

// Of a wait for all ranks' rows (row_exchange.h), each rank's gradients of this rank's rows are added; of one for the rows
// of experts (expert_exchange.h), they are exchanged back.
void backward_of_wait(Graph& g, const Node& node, Gradients& gradients) {
  if (node.attributes.has("row_distance"))
    return gradients.contribute(node.inputs[1], exchange_gradient(g, node, gradients.of(node.outputs[0])));
  if (!node.attributes.flag("gathers_rows")) fail("exchange_wait: what was exchanged has no gradient");
  const TensorId own = node.inputs[1], d = gradients.of(node.outputs[0]);
  const RankGroup group = group_of(node.attributes);
  const std::string name = g.tensor(own).name + ".grad";
  gradients.contribute(own, node.attributes.flag("zigzag") ? sum_chunks(g, d, group, name)
                                                           : sum_rows(g, d, kNone, g.shape(own), group, name));
}

void wait(const KernelCall& call) {
  if (call.ranks) call.ranks->wait(static_cast<int>(call.node.attributes.integer("channel")));
}

constexpr Example::Input fixed(Shape shape) { return {.shape = shape, .differentiable = false, .keeps_fp32 = true}; }

// Of one rank, which has nobody to talk to: what several ranks do is tested with several (test/test_ranks.cpp).
std::vector<Example> all_gather_examples() {
  return {{{{"channel", 1}, {"rank", 0}, {"ranks", 1}, {"bounds", std::vector<int64_t>{0, 12, 0, 5}}},
           {fixed({3, 4}), fixed({5})}}};
}
std::vector<Example> wait_examples() { return {{{{"channel", 1}, {"arrivals", 1}}, {fixed({3, 4}), fixed({5})}}}; }

}  // namespace

Attributes group_attributes(const RankGroup& group) {
  return {{"rank", group.rank}, {"ranks", group.ranks}, {"first", group.first}, {"stride", group.stride}};
}

RankGroup group_of(const Attributes& a) {
  return {static_cast<int>(a.integer("rank")), static_cast<int>(a.integer("ranks")),
          static_cast<int>(a.integer("first", 0)), static_cast<int>(a.integer("stride", 1))};
}

std::vector<TensorId> wait_for_exchange(Graph& g, int64_t channel, std::vector<TensorId> arriving,
                                        const std::vector<TensorId>& sent, const std::string& name) {
  const auto arrivals = static_cast<int64_t>(arriving.size());
  for (const TensorId id : sent)
    if (id != kNone) arriving.push_back(id);
  return g.add("exchange_wait", {{"channel", channel}, {"arrivals", arrivals}}, arriving, name);
}

void infer_arrivals(Graph& g, Node& node) {
  const std::vector<TensorId> inputs = node.inputs;
  for (int64_t i = 0; i < node.attributes.integer("arrivals"); ++i) {
    const TensorId id = inputs.at(static_cast<size_t>(i));
    const Tensor arriving = g.tensor(id);
    const TensorId out = g.add_output(node, "", arriving.dtype, arriving.shape);
    g.tensor(out).alias = id, g.tensor(out).role = arriving.role;
  }
}

Cost cost_of_wait(const Graph&, const Node&) { return {0, 0, 1}; }

Communicator& ranks_of(const KernelCall& call) {
  const RankGroup group = group_of(call.node.attributes);
  if (!call.ranks || call.ranks->rank() != group.in_run(group.rank) ||
      call.ranks->size() <= group.in_run(group.ranks - 1))
    fail("the graph of rank ", group.in_run(group.rank), " runs elsewhere");
  return *call.ranks;
}

std::vector<Op> exchange_ops() {
  return {{.name = "reduce_scatter_start",
           .summary = "sends each rank this rank's sums of what it owns",
           .infer = infer_reduce_scatter,
           .cost = cost_reduce_scatter,
           .cpu = reduce_scatter,
           .cuda = reduce_scatter},
          {.name = "all_gather_start",
           .summary = "sends all ranks what this rank owns",
           .infer = infer_all_gather,
           .cost = cost_all_gather,
           .cpu = all_gather,
           .cuda = all_gather,
           .examples = all_gather_examples,
           .cpu_takes_bf16 = true},
          {.name = "piece_gather_start",
           .summary = "sends all ranks what this rank has of parameters",
           .infer = infer_piece_gather,
           .cost = cost_piece_gather,
           .cpu = piece_gather,
           .cuda = piece_gather,
           .cpu_takes_bf16 = true},
          {.name = "exchange_wait",
           .summary = "waits for what other ranks send",
           .infer = infer_arrivals,
           .backward = backward_of_wait,
           .cost = cost_of_wait,
           .cpu = wait,
           .cuda = wait,
           .examples = wait_examples,
           .cpu_takes_bf16 = true}};
}

}  // namespace llm
