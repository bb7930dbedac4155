// The nodes of ring_attention.h:
//   ring_shift_start: x (B, T, C) -> (B, "receive_tokens", C): sends the first "send_tokens" tokens of each sequence to the
//                     rank before this one, and receives such of the rank behind it, which are there after the wait.
//                     Attributes: those of the group, "channel".
//   ring_attention:   out, log_sum_exp, queries, keys and values, [document starts of each step] -> out, log_sum_exp, in
//                     place: what the steps have given. Its backward pass is the ring's. Attributes: those of attention
//                     and of the group; "channel": of keys and values, and the next one of their gradient.
// All nodes of the forward pass are run again by the level of recomputation that is attention's.
// What is merged, by merge_attention, and added up is in fp32 until the last step, the gradient that travels too: rounded to
// bf16 at each rank, its error would grow with their number.
#include "llm/ops/ring_attention.h"

#include "llm/device/communicator.h"
#include "llm/graph/autodiff.h"
#include "llm/ops/chunks.h"
#include "llm/ops/exchange.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

// One rank's view of the ring.
struct Ring {
  RankGroup group;
  int64_t tokens;  // that a rank has of each sequence, two chunks

  int owner(int step) const { return (group.rank + step) % group.ranks; }
  bool is_last(int step) const { return step + 1 == group.ranks; }
  // Whether a step's keys are those of an earlier rank, which all queries see; else the second chunk of queries does.
  bool all_see(int step) const { return owner(step) < group.rank; }
  int64_t first_query(int step) const { return step == 0 || all_see(step) ? 0 : tokens / 2; }
  int64_t keys(int step) const { return all_see(step) ? tokens / 2 : tokens; }
  // Of the gradient of a step's keys: nobody sees the last chunk of all, which rank 0 has, but its owner.
  int64_t gradient_tokens(int step) const { return owner(step) == 0 ? tokens / 2 : tokens; }

  // Starts to send `x`, and to receive; the wait is given the result.
  TensorId start(Graph& g, TensorId x, int64_t send, int64_t receive, int64_t channel, const std::string& name) const {
    Attributes a = group_attributes(group);
    a.set("channel", channel), a.set("send_tokens", send), a.set("receive_tokens", receive);
    return g.add("ring_shift_start", a, {x}, name + ".start")[0];
  }
  TensorId start_keys(Graph& g, TensorId keys_values, int step, int64_t channel, const std::string& name) const {
    // The rank before this one sees of them what this one does, unless it is the last.
    const int64_t send = group.rank == 0 ? tokens / 2 : keys(step);
    return start(g, keys_values, send, keys(step + 1), channel, name);
  }
};

Attributes attributes_of(const Attributes& heads, int64_t first) {
  Attributes a;
  for (const char* key : {"heads", "kv_heads", "head_size"}) a.set(key, heads.integer(key));
  a.set("firsts", std::vector<int64_t>{first});
  return a;
}

// The second chunk.
TensorId take_late(Graph& g, TensorId x, const Ring& ring, int64_t axis = 1) {
  const std::string name = g.tensor(x).name + ".second_chunk";
  return g.add("take_tokens", {{"first", ring.tokens / 2}, {"tokens", ring.tokens / 2}, {"axis", axis}}, {x}, name)[0];
}

TensorId add_gradients(Graph& g, TensorId a, TensorId b, int64_t first, bool bf16, const std::string& name) {
  return g.add("add_tokens", {{"first", first}, {"bf16", bf16}}, {a, b}, name)[0];
}

void infer_shift(Graph& g, Node& node) {
  const Attributes& a = node.attributes;
  const Shape x = g.shape(node.inputs[0]);
  const int64_t send = a.integer("send_tokens"), receive = a.integer("receive_tokens");
  if (x.rank() != 3 || send < 1 || send > x[1] || receive < 1)
    fail("ring_shift_start: ", send, " tokens of ", x.text(), " cannot be sent, nor ", receive, " received");
  g.add_output(node, "", g.dtype(node.inputs[0]), {x[0], receive, x[2]});
}

Cost cost_of_shift(const Graph& g, const Node& node) {
  const Shape x = g.shape(node.inputs[0]);
  const auto sent = static_cast<double>(x[0] * node.attributes.integer("send_tokens") * x[2]) *
                    static_cast<double>(size_of(g.dtype(node.inputs[0])));
  Cost c{0, sent, static_cast<double>(g.tensor(node.outputs[0]).bytes())};
  c.bytes_sent = sent;
  return c;
}

void start_shift(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const RankGroup group = group_of(a);
  Communicator& ranks = ranks_of(call);
  const auto channel = static_cast<int>(a.integer("channel"));
  Exchange& exchange = ranks.prepare(channel);
  const Shape x = call.in_shape(0);
  const auto row = static_cast<size_t>(x[2]) * size_of(call.in_dtype(0));
  const auto all = static_cast<size_t>(x[1]) * row, sent = static_cast<size_t>(a.integer("send_tokens")) * row,
             received = static_cast<size_t>(a.integer("receive_tokens")) * row;
  const int to = group.in_run((group.rank + group.ranks - 1) % group.ranks),
            from = group.in_run((group.rank + 1) % group.ranks);
  auto* const source = const_cast<std::byte*>(call.in<std::byte>(0));
  for (size_t b = 0; b < static_cast<size_t>(x[0]); ++b) {
    exchange.sends.push_back({to, source + b * all, sent});
    exchange.receives.push_back({from, call.out<std::byte>(0) + b * received, received});
  }
  ranks.start(channel);
}

void infer_ring(Graph& g, Node& node) {
  const std::vector<TensorId> inputs = node.inputs;
  for (size_t i = 0; i < 2; ++i) {
    const Tensor merged = g.tensor(inputs.at(i));
    const TensorId out = g.add_output(node, i ? "log_sum_exp" : "", merged.dtype, merged.shape);
    g.tensor(out).alias = inputs[i];
  }
}

Cost cost_of_ring(const Graph&, const Node&) { return {0, 0, 1}; }

void stay(const KernelCall&) {}

void backward_of_ring(Graph& g, const Node& node, Gradients& gradients) {
  const TensorId out = node.inputs[0], log_sum_exp = node.inputs[1], queries = node.inputs[2], own = node.inputs[3];
  const Ring ring{group_of(node.attributes), g.shape(queries)[1]};
  const int64_t channel = node.attributes.integer("channel");
  const bool bf16 = g.dtype(queries) == DType::bf16;
  const std::string d_keys_name = g.tensor(own).name + ".grad.sum",
                    d_queries_name = g.tensor(queries).name + ".grad.sum";
  using Ids = std::vector<TensorId>;
  const Ids all = {gradients.of(node.outputs[0]), queries, out, log_sum_exp};
  Ids late;  // the same of the second chunk
  TensorId keys = own, d_queries = kNone, d_own = kNone, d_arriving = kNone, d_sent = kNone;
  const auto arrived = [&] {
    return wait_for_exchange(g, channel + 1, {d_arriving}, {d_sent}, d_keys_name + ".received")[0];
  };
  for (int step = 0; step < ring.group.ranks; ++step) {
    const TensorId next =
        ring.is_last(step) ? kNone : ring.start_keys(g, keys, step, channel, g.tensor(own).name + ".again");
    const int64_t first = ring.first_query(step);
    if (first > 0 && late.empty())
      for (const TensorId id : all) late.push_back(take_late(g, id, ring, id == log_sum_exp ? 2 : 1));
    Ids inputs = first > 0 ? late : all;
    inputs.insert(inputs.end(), {node.input(4 + static_cast<size_t>(step)), keys});
    const Ids d = g.add("attention_backward", attributes_of(node.attributes, step ? ring.keys(step) : 0), inputs);
    if (step == 0) {
      d_queries = d[0], d_own = d[2];
    } else {
      d_queries = add_gradients(g, d_queries, d[0], first, bf16 && ring.is_last(step), d_queries_name);
      d_sent = step == 1 ? d[2] : add_gradients(g, arrived(), d[2], 0, false, d_keys_name);
      d_arriving =
          ring.start(g, d_sent, ring.gradient_tokens(step), ring.gradient_tokens(step + 1), channel + 1, d_keys_name);
    }
    if (next != kNone) keys = wait_for_exchange(g, channel, {next}, {keys}, g.tensor(own).name + ".again")[0];
  }
  if (d_arriving != kNone) d_own = add_gradients(g, d_own, arrived(), 0, bf16, d_keys_name + ".own");
  gradients.contribute(queries, d_queries);
  gradients.contribute(own, d_own);
}

}  // namespace

std::vector<TensorId> add_ring_starts(Graph& g, TensorId starts, const RankGroup& group) {
  using List = std::vector<int64_t>;
  const int64_t T = g.shape(starts)[1];
  const Ring ring{group, T / group.ranks};
  const Chunks queries = zigzag_chunks(T, group.rank, group.ranks);
  std::vector<TensorId> of_steps;
  for (int step = 0; step < group.ranks; ++step) {
    const Chunks keys = zigzag_chunks(T, ring.owner(step), group.ranks);
    const bool is_late = ring.first_query(step) > 0;
    const Attributes a = {
        {"tokens", is_late ? queries.length : 2 * queries.length},
        {"firsts", is_late ? List{queries.firsts[1]} : List{queries.firsts[0], queries.firsts[1]}},
        {"key_chunk", keys.length},
        {"key_firsts", ring.all_see(step) ? List{keys.firsts[0]} : List{keys.firsts[0], keys.firsts[1]}}};
    of_steps.push_back(g.add("query_starts", a, {starts}, concat(g.tensor(starts).name, ".step", step))[0]);
  }
  return of_steps;
}

std::vector<TensorId> add_ring_attention(Graph& g, const Attributes& heads, TensorId queries, TensorId keys_values,
                                         const std::vector<TensorId>& starts, const RankGroup& group,
                                         const std::string& name) {
  const Ring ring{group, g.shape(queries)[1]};
  const int64_t channel = ++g.channels;
  ++g.channels;
  const bool bf16 = g.dtype(queries) == DType::bf16;
  const size_t begin = g.nodes.size();
  TensorId keys = keys_values, late = kNone;
  std::vector<TensorId> merged;
  for (int step = 0; step < group.ranks; ++step) {
    const TensorId next = ring.is_last(step) ? kNone : ring.start_keys(g, keys, step, channel, name + ".keys_values");
    const int64_t first = ring.first_query(step);
    if (first > 0 && late == kNone) late = take_late(g, queries, ring);
    const Attributes a = attributes_of(heads, step ? ring.keys(step) : 0);
    const TensorId seen_from = starts.empty() ? kNone : starts[static_cast<size_t>(step)];
    const auto part = g.add("attention", a, {first > 0 ? late : queries, seen_from, keys}, concat(name, ".step", step));
    merged = step == 0 ? part
                       : g.add("merge_attention", {{"first", first}, {"bf16", bf16 && ring.is_last(step)}},
                               {merged[0], merged[1], part[0], part[1]}, concat(name, ".merged", step));
    if (next != kNone) keys = wait_for_exchange(g, channel, {next}, {keys}, name + ".keys_values.received")[0];
  }
  Attributes a = group_attributes(group);
  for (const char* key : {"heads", "kv_heads", "head_size"}) a.set(key, heads.integer(key));
  a.set("channel", channel);
  std::vector<TensorId> inputs = {merged[0], merged[1], queries, keys_values};
  inputs.insert(inputs.end(), starts.begin(), starts.end());
  const std::vector<TensorId> outputs = g.add("ring_attention", a, inputs, name);
  for (size_t n = begin; n < g.nodes.size(); ++n)
    g.nodes[n].attributes.set("recompute", static_cast<int64_t>(Recompute::attention));
  return outputs;
}

std::vector<Op> ring_attention_ops() {
  return {{.name = "ring_shift_start",
           .summary = "sends tokens of each sequence to the rank before this one",
           .infer = infer_shift,
           .cost = cost_of_shift,
           .cpu = start_shift,
           .cuda = start_shift,
           .cpu_takes_bf16 = true},
          {.name = "ring_attention",
           .summary = "attention whose keys and values have gone round the ranks",
           .infer = infer_ring,
           .backward = backward_of_ring,
           .cost = cost_of_ring,
           .cpu = stay,
           .cuda = stay,
           .cpu_takes_bf16 = true}};
}

}  // namespace llm
