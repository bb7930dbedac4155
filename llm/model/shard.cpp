#include "llm/model/shard.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "llm/base/error.h"
#include "llm/graph/op.h"
#include "llm/model/forward_rewriter.h"
#include "llm/ops/row_exchange.h"

namespace llm {
namespace {

// Of (B, T, ...), the share of a rank: some sequences, or a part of one.
Shape own_rows(const Shape& all, int ranks) {
  const int64_t B = all[0], T = all[1];
  const bool by_sequences = B % ranks == 0;
  if (!by_sequences && (ranks % B || T % (ranks / B)))
    fail(B, " sequences of ", T, " tokens cannot be shared among ", ranks, " ranks");
  const int64_t b = by_sequences ? B / ranks : 1, t = by_sequences ? T : T * B / ranks;
  return all.rank() == 2 ? Shape{b, t} : Shape{b, t, all[2]};
}

class Sharder : public ForwardRewriter {
 public:
  Sharder(const Graph& whole, const std::vector<Parameter>& sliced, const RankGroup& tensor, int64_t channels)
      : ForwardRewriter(whole, channels), group_(tensor) {
    for (const Parameter& p : sliced) slice_[p.name] = &p;
  }

 private:
  Tensor adapted(const Tensor& t) const override {
    Tensor own = t;
    if (t.role == Role::parameter) own.shape = slice_.at(t.name)->shape;
    return own;
  }

  // Whether a tensor has the rows of this rank's tokens alone.
  bool is_shared(TensorId id) const { return id != kNone && shared_.contains(id); }

  std::vector<TensorId> add(const Node& node) override {
    std::vector<TensorId> inputs;
    for (const TensorId id : node.inputs) inputs.push_back(id_of(id));
    const std::string_view op = node.op->name;
    if (op == "linear") return linear(node, inputs);
    Attributes attributes = node.attributes;
    for (const char* heads : {"heads", "kv_heads"})
      if (attributes.has(heads)) attributes.set(heads, std::max<int64_t>(1, attributes.integer(heads) / group_.ranks));
    bool is_own = false;
    for (const TensorId id : inputs) is_own = is_own || is_shared(id);
    if (op == "embedding") {
      if (inputs.size() > 2 && own_shape(inputs[0])[1] != g_.shape(inputs[0])[1])
        fail("learned positions need whole sequences on each of ", group_.ranks, " tensor-parallel ranks: a batch of ",
             group_.ranks, " would do");
      inputs[0] = own_view(inputs[0]);
      is_own = true;
    } else if (is_own) {
      // Targets and weights of losses: inputs, or what ranks that share sequences have of them.
      for (TensorId& id : inputs)
        if (id != kNone && (g_.tensor(id).role == Role::input || parts_of_inputs_.contains(id))) id = own_view(id);
    }
    if (op == "dropout" && is_own) {
      const Shape own = g_.shape(inputs[0]), all = from_.shape(node.inputs[0]);
      const int64_t first = group_.rank * own.elements(), sample = all.elements() / all[0];
      if (first % sample % 4) fail("dropout among tensor-parallel ranks needs channels that are a multiple of 4");
      attributes.set("first_row", first / sample);
      attributes.set("first_group", first % sample / 4);
    }
    const std::vector<TensorId> outputs = g_.add(op, attributes, inputs, name_of(node));
    if (op == "copy_parts") parts_of_inputs_.insert(outputs[0]);
    if (is_own) shared_.insert(outputs.begin(), outputs.end());
    return outputs;
  }

  std::vector<TensorId> linear(const Node& node, std::vector<TensorId> inputs) {
    const Tensor& weight = from_.tensor(node.inputs[linear_input::weight]);
    const Parameter& slice = *slice_.at(weight.name);
    if (slice.slices > 1 && slice.shard_axis == 0) {
      const Shape all = from_.shape(node.inputs[linear_input::x]);
      if (is_shared(inputs[0])) inputs[0] = gather_rows(g_, inputs[0], all, group_, g_.tensor(inputs[0]).name + ".all");
      return g_.add("linear", node.attributes, inputs, name_of(node));
    }
    std::vector<TensorId> outputs;
    if (slice.slices == 1) {
      outputs = g_.add("linear", node.attributes, inputs, name_of(node));
    } else {
      const TensorId bias = inputs.size() > linear_input::bias ? inputs[linear_input::bias] : kNone;
      const TensorId partial =
          g_.add("linear", node.attributes, {inputs[0], inputs[linear_input::weight]}, name_of(node) + ".partial")[0];
      outputs = {sum_rows(g_, partial, bias, own_rows(g_.shape(partial), group_.ranks), group_, name_of(node))};
    }
    shared_.insert(outputs.begin(), outputs.end());
    return outputs;
  }

  Shape own_shape(TensorId id) const { return own_rows(g_.shape(id), group_.ranks); }
  TensorId own_view(TensorId id) {
    const Shape own = own_shape(id);
    return g_.add_view(g_.tensor(id).name + ".own", id, own, group_.rank * own.elements());
  }

  RankGroup group_;
  std::map<std::string, const Parameter*> slice_;
  std::set<TensorId> shared_, parts_of_inputs_;
};

}  // namespace

void check_mesh(const Mesh& mesh, const ModelConfig& c, int64_t batch, int64_t tokens) {
  if (const int64_t N = mesh.context; N > 1 && tokens % (2 * N)) {
    int64_t would_do = N;
    while (would_do > 1 && tokens % (2 * would_do)) --would_do;
    fail_usage(N, " context-parallel ranks have two equal chunks each of a sequence, and ", 2 * N, " do not divide ",
               tokens, " tokens; ", would_do, would_do == 1 ? " rank" : " ranks", " would do, or --context ",
               std::max<int64_t>(1, tokens / (2 * N)) * 2 * N);
  }
  tokens /= mesh.context;
  const auto divides = [&](int ranks, const char* kind, int64_t value, const char* what) {
    if (value % ranks == 0) return;
    int64_t would_do = ranks;
    while (value % would_do) --would_do;
    fail_usage(ranks, " ", kind, "-parallel ranks do not divide ", value, " ", what, "; ", would_do, " would do");
  };
  if (mesh.expert > 1) {
    if (!c.experts) fail_usage("a model without experts has nothing for ", mesh.expert, " expert-parallel ranks");
    divides(mesh.expert, "expert", c.experts, "experts");
    if (batch % mesh.expert)
      fail_usage("a micro-step of ", batch, " sequences cannot be shared among ", mesh.expert,
                 " expert-parallel ranks; a batch of ", (batch + mesh.expert - 1) / mesh.expert * mesh.expert,
                 " would do");
    batch /= mesh.expert;
  }
  const int n = mesh.tensor;
  divides(n, "tensor", c.heads, "heads");
  if (c.kv_heads % n && n % c.kv_heads)
    fail_usage(n, " tensor-parallel ranks and ", c.kv_heads, " key-value heads: one must be a multiple of the other; ",
               std::gcd(n, c.kv_heads), " ranks would do");
  divides(n, "tensor", c.hidden, "columns of the MLP");
  if (batch % n && (n % batch || tokens % (n / batch) || c.positions == Positions::learned))
    fail_usage("a micro-step of ", batch, " sequences cannot be shared among ", n,
               " tensor-parallel ranks; a batch of ", (batch + n - 1) / n * n * mesh.expert, " would do");
}

std::vector<Parameter> sliced_table(const std::vector<Parameter>& table, const Mesh& mesh) {
  std::vector<Parameter> sliced = table;
  for (Parameter& p : sliced) {
    if (p.layer < 0 || p.shard_axis < 0) continue;
    p.slices =
        p.experts ? mesh.expert : mesh.tensor;  // tensor-parallel ranks have the same experts, for their own tokens
    if (p.experts) {
      p.shape = {p.shape[0] / p.slices, p.shape[1]};
      p.experts /= p.slices, p.joined.resize(p.joined.size() / static_cast<size_t>(p.slices));
      continue;
    }
    if (p.shard_axis == 1) {
      p.shape = {p.shape[0], p.shape[1] / p.slices};
      continue;
    }
    int64_t rows = p.joined.empty() ? p.shape[0] / p.slices : 0;
    for (size_t k = 0; k < p.joined.size(); ++k) rows += p.joined[k] /= p.different_slices(k, p.slices);
    p.shape = p.shape.rank() == 1 ? Shape{rows} : Shape{rows, p.shape[1]};
  }
  return sliced;
}

Parameter whole_of(const Parameter& sliced) {
  Parameter whole = sliced;
  whole.slices = 1;
  if (sliced.slices == 1) return whole;
  if (sliced.experts) {
    whole.shape = {sliced.shape[0] * sliced.slices, sliced.shape[1]};
    whole.experts *= sliced.slices;
    for (int s = 1; s < sliced.slices; ++s)
      whole.joined.insert(whole.joined.end(), sliced.joined.begin(), sliced.joined.end());
    return whole;
  }
  if (sliced.shard_axis == 1) {
    whole.shape = {sliced.shape[0], sliced.shape[1] * sliced.slices};
    return whole;
  }
  int64_t rows = sliced.joined.empty() ? sliced.shape[0] * sliced.slices : 0;
  for (size_t k = 0; k < whole.joined.size(); ++k) rows += whole.joined[k] *= sliced.different_slices(k, sliced.slices);
  whole.shape = sliced.shape.rank() == 1 ? Shape{rows} : Shape{rows, sliced.shape[1]};
  return whole;
}

std::vector<CopiedPart> parts_of_slice(const Parameter& whole, int slices, int slice, bool once) {
  const int64_t rows = whole.shape[0], columns = whole.shape.rank() == 1 ? 1 : whole.shape[1];
  if (slices == 1) return {{0, 0, columns, 0, columns, rows, columns}};
  if (whole.experts) {
    const int64_t own = rows / slices * columns;
    return {{0, slice * own, own, 0, own, 1, own}};
  }
  if (whole.shard_axis == 1) {
    const int64_t own = columns / slices;
    return {{0, slice * own, columns, 0, own, rows, own}};
  }
  std::vector<CopiedPart> parts;
  int64_t first = 0, to = 0;
  const std::vector<int64_t> joined = whole.joined.empty() ? std::vector{rows} : whole.joined;
  for (size_t k = 0; k < joined.size(); ++k) {
    const int64_t different = whole.different_slices(k, slices), own = joined[k] / different;
    const int64_t which = slice * different / slices;
    if (!once || which * slices == slice * different)
      parts.push_back(
          {0, (first + which * own) * columns, own * columns, to * columns, own * columns, 1, own * columns});
    first += joined[k], to += own;
  }
  return parts;
}

int64_t first_shared(const Parameter& sliced) {
  const int64_t columns = sliced.shape.rank() == 1 ? 1 : sliced.shape[1];
  int64_t rows = 0;
  for (size_t k = 0; k < sliced.joined.size() && sliced.heads[k] >= sliced.slices; ++k) rows += sliced.joined[k];
  return rows * columns;
}

RankGroup sharing_group(const Parameter& sliced, const Mesh& mesh, int rank) {
  const RankGroup all = mesh.tensor_group(rank);
  const int ranks = static_cast<int>(sliced.slices / sliced.heads.back());
  return {all.rank % ranks, ranks, rank - all.rank % ranks * all.stride, all.stride};
}

Graph shard(const Graph& whole, const std::vector<Parameter>& sliced, const RankGroup& tensor, int64_t channels) {
  return Sharder(whole, sliced, tensor, channels).run();
}

}  // namespace llm
