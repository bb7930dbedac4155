#include "llm/model/expert_ranks.h"

#include <algorithm>
#include <map>

#include "llm/graph/op.h"
#include "llm/ops/expert_exchange.h"
#include "llm/ops/row_exchange.h"

namespace llm {
namespace {

class ExpertSharer {
 public:
  ExpertSharer(const Graph& forward, const std::vector<Parameter>& sliced, const Mesh& mesh, int rank, int64_t channels)
      : from_(forward), tokens_(mesh.token_group(rank)), ids_(forward.tensors.size(), kNone) {
    const Mesh::Place place = mesh.place_of(rank);
    g_.channels = channels;
    experts_ = {mesh.expert_group(rank), place.context * mesh.tensor + place.tensor, mesh.context * mesh.tensor};
    for (const Parameter& p : sliced) shape_[p.name] = p.shape;
  }

  Graph run() {
    for (size_t i = 0; i < from_.tensors.size(); ++i) {
      const Tensor& t = from_.tensors[i];
      if (t.role != Role::parameter && t.role != Role::input) continue;
      if (t.alias != kNone) continue;  // a view: id_of() makes it where it is used
      Tensor own = t;
      if (t.role == Role::parameter) own.shape = shape_.at(t.name);
      if (t.role == Role::input) own.shape = {t.shape[0] * experts_.group.ranks, t.shape[1]};
      ids_[i] = static_cast<TensorId>(g_.tensors.size());
      g_.tensors.push_back(own);
      if (t.role == Role::input && experts_.group.ranks > 1) own_sequences_[ids_[i]] = kNone;
    }
    for (const Node& node : from_.nodes) add(node);
    g_.layer = -1;
    return std::move(g_);
  }

 private:
  // The number here of a tensor of the graph that this one is made from.
  TensorId id_of(TensorId id) {
    if (id == kNone) return kNone;
    TensorId& known = ids_[static_cast<size_t>(id)];
    const Tensor& t = from_.tensor(id);
    if (known == kNone) known = g_.add_view(t.name, id_of(t.alias), t.shape, t.offset, t.row_stride);
    const auto input = own_sequences_.find(known);
    if (input == own_sequences_.end()) return known;
    if (input->second == kNone)
      input->second = g_.add_view(t.name + ".sequences", known, t.shape, experts_.group.rank * t.shape.elements());
    return input->second;
  }

  void add(const Node& node) {
    g_.phase = node.phase, g_.layer = node.layer;
    std::vector<TensorId> inputs;
    for (const TensorId id : node.inputs) inputs.push_back(id_of(id));
    Attributes attributes = node.attributes;
    const std::string_view op = node.op->name;
    const std::string& name = from_.tensor(node.outputs[0]).name;
    const bool exchanges = experts_.group.ranks > 1;
    if (op == "dropout" && exchanges)
      attributes.set("first_row", attributes.integer("first_row", 0) + experts_.group.rank * sequences());
    if (op == "router_loss") inputs[1] = all_counts_, attributes.set("ranks", tokens_.ranks);
    if (op == "grouped_linear" && exchanges) inputs[2] = own_counts_;
    if (op == "expert_sum" && exchanges)
      inputs[0] = send_back(g_, inputs[0], counts_, g_.shape(inputs[2]).elements(), experts_, name + ".returned");

    std::vector<TensorId> outputs = g_.add(op, attributes, inputs, name);
    for (size_t i = 0; i < node.outputs.size(); ++i) {
      if (node.outputs[i] == kNone) continue;
      ids_[static_cast<size_t>(node.outputs[i])] = outputs[i];
      g_.tensor(outputs[i]).name = from_.tensor(node.outputs[i]).name;
    }
    if (op == "expert_order") take_counts(outputs[2]);
    if (op == "expert_rows" && exchanges) {
      // All choices of all ranks may fall on this rank's experts; but a token chooses each of these once.
      const Shape places = g_.shape(inputs[2]);
      const int64_t own = g_.shape(own_counts_).elements();
      const int64_t most = experts_.group.ranks * places[0] * places[1] * std::min(places[2], own);
      ids_[static_cast<size_t>(node.outputs[0])] =
          send_to_experts(g_, outputs[0], counts_, most, experts_, name + ".arrived");
    }
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

  int64_t sequences() const {
    for (const Tensor& t : from_.tensors)
      if (t.role == Role::input && t.alias == kNone) return t.shape[0];
    return 0;
  }

  const Graph& from_;
  RankGroup tokens_;
  ExpertRanks experts_;
  std::map<std::string, Shape> shape_;  // of parameters
  Graph g_;
  std::vector<TensorId> ids_;                                          // by tensor of the graph it is made from
  std::map<TensorId, TensorId> own_sequences_;                         // of inputs; kNone: not made yet
  TensorId counts_ = kNone, own_counts_ = kNone, all_counts_ = kNone;  // of the layer that is being added
};

}  // namespace

Graph share_experts(const Graph& forward, const std::vector<Parameter>& sliced, const Mesh& mesh, int rank,
                    int64_t channels) {
  return ExpertSharer(forward, sliced, mesh, rank, channels).run();
}

}  // namespace llm
