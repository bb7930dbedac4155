#include "llm/model/expert_ranks.h"

#include <algorithm>
#include <map>

#include "llm/graph/op.h"
#include "llm/model/forward_rewriter.h"
#include "llm/ops/expert_exchange.h"
#include "llm/ops/row_exchange.h"

namespace llm {
namespace {

class ExpertSharer : public ForwardRewriter {
 public:
  ExpertSharer(const Graph& forward, const std::vector<Parameter>& sliced, const Mesh& mesh, int rank, int64_t channels)
      : ForwardRewriter(forward, channels), tokens_(mesh.token_group(rank)) {
    const Mesh::Place place = mesh.place_of(rank);
    experts_ = {mesh.expert_group(rank), place.context * mesh.tensor + place.tensor, mesh.context * mesh.tensor};
    for (const Parameter& p : sliced) shape_[p.name] = p.shape;
  }

 private:
  bool exchanges() const { return !experts_.group.is_alone(); }

  Tensor adapted(const Tensor& t) const override {
    Tensor own = t;
    own.shape = t.role == Role::parameter ? shape_.at(t.name) : Shape{t.shape[0] * experts_.group.ranks, t.shape[1]};
    return own;
  }

  // What reads an input reads this rank's sequences of it.
  void begin() override {
    for (size_t i = 0; i < ids_.size() && exchanges(); ++i) {
      const Tensor& t = from_.tensors[i];
      if (ids_[i] == kNone || t.role != Role::input) continue;
      sequences_ = t.shape[0];
      ids_[i] = g_.add_view(t.name + ".sequences", ids_[i], t.shape, experts_.group.rank * t.shape.elements());
    }
  }

  // Views are no node's: what stands for one is made where it is used first.
  TensorId made(TensorId id) {
    if (id == kNone || id_of(id) != kNone) return id_of(id);
    const Tensor& t = from_.tensor(id);
    return ids_[static_cast<size_t>(id)] = g_.add_view(t.name, made(t.alias), t.shape, t.offset, t.row_stride);
  }

  std::vector<TensorId> add(const Node& node) override {
    std::vector<TensorId> inputs;
    for (const TensorId id : node.inputs) inputs.push_back(made(id));
    Attributes attributes = node.attributes;
    const std::string_view op = node.op->name;
    const std::string name = name_of(node);
    if (op == "router_loss") inputs[1] = all_counts_, attributes.set("ranks", tokens_.ranks);
    if (exchanges()) {
      if (op == "dropout")
        attributes.set("first_row", attributes.integer("first_row", 0) + experts_.group.rank * sequences_);
      if (op == "expert_rows")
        return {arrived(g_.add(op, attributes, inputs, name + ".sent")[0], g_.shape(inputs[2]), name)};
      if (op == "grouped_linear") inputs[2] = own_counts_;
      if (op == "expert_sum")
        inputs[0] = send_back(g_, inputs[0], counts_, g_.shape(inputs[2]).elements(), experts_, name + ".returned");
    }
    const std::vector<TensorId> outputs = g_.add(op, attributes, inputs, name);
    if (op == "expert_order") take_counts(outputs[2]);
    return outputs;
  }

  // The rows for this rank's experts, from all ranks. All choices of all ranks may fall on them; but a token, of those that
  // have `places` (B, T, K), chooses each expert once.
  TensorId arrived(TensorId rows, const Shape& places, const std::string& name) {
    const int64_t own = g_.shape(own_counts_).elements();
    const int64_t most = experts_.group.ranks * places[0] * places[1] * std::min(places[2], own);
    return send_to_experts(g_, rows, counts_, most, experts_, name);
  }

  // counts (E) of this rank's choices: those of all ranks that share the micro-step's tokens.
  void take_counts(TensorId counts) {
    const int64_t E = g_.shape(counts).elements();
    const std::string name = g_.tensor(counts).name;
    const TensorId row = g_.add_view(name + ".row", counts, {1, 1, E}, 0);
    counts_ = gather_rows(g_, row, {tokens_.ranks, 1, E}, tokens_, name + ".of_ranks");
    const std::vector<TensorId> sums = add_expert_counts(g_, counts_, experts_, name + ".sums");
    own_counts_ = sums[0], all_counts_ = sums[1];
  }

  RankGroup tokens_;
  ExpertRanks experts_;
  std::map<std::string, Shape> shape_;                                 // of parameters
  int64_t sequences_ = 0;                                              // that this rank has of a micro-step
  TensorId counts_ = kNone, own_counts_ = kNone, all_counts_ = kNone;  // of the layer that is being added
};

}  // namespace

Graph share_experts(const Graph& forward, const std::vector<Parameter>& sliced, const Mesh& mesh, int rank,
                    int64_t channels) {
  return ExpertSharer(forward, sliced, mesh, rank, channels).run();
}

}  // namespace llm
