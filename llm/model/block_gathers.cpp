// The part of distribute.h for parameters that are divided: gathers of the blocks' parameters.
#include <algorithm>
#include <map>

#include "llm/model/distribute.h"
#include "llm/model/own_pieces.h"
#include "llm/model/shard.h"
#include "llm/model/stages.h"
#include "llm/ops/exchange.h"

namespace llm {
namespace {

using List = std::vector<int64_t>;

// Gathers the parameters of a block in front of its first node; that begins in front of the block before it.
class BlockGatherer {
 public:
  BlockGatherer(Graph& graph, const std::vector<Parameter>& table, const DataParallel& parallel,
                const Partition& partition)
      : g_(graph), table_(table), p_(parallel), partition_(partition), stages_(parallel.mesh.stage) {}

  void run() {
    std::map<int, size_t> first_node;  // of each block's forward pass
    for (size_t n = g_.nodes.size(); n-- > 0;)
      if (g_.nodes[n].layer >= 0 && g_.nodes[n].phase == Phase::forward) first_node[g_.nodes[n].layer] = n;
    const int layers = static_cast<int>(first_node.size());
    size_t behind = 0;  // the first node behind the blocks
    for (size_t n = 0; n < g_.nodes.size(); ++n)
      if (g_.nodes[n].layer >= 0 && g_.nodes[n].phase == Phase::forward) behind = n + 1;
    // What is in front of the blocks and behind them: a tied embedding is gathered for each.
    const size_t end = g_.nodes.size();
    gather(-1, 0, 0, 0, layers ? first_node[0] : end);
    for (int layer = 0; layer < layers; ++layer)
      gather(layer, layer ? first_node[layer - 1] : 0, first_node[layer], 0, end);
    if (layers) gather(-1, first_node[layers - 1], behind, behind, end);
    insert();
    for (const Parameter& p : table_) {
      if (!is_gathered(p)) continue;
      const TensorId whole = g_.find(whole_name(p));  // none: of a block that this graph does not have
      g_.tensor(whole == kNone ? g_.find(p.name) : whole).role = Role::activation;
    }
  }

 private:
  // Whether this rank's memory has less than all of a parameter that a graph reads.
  bool is_gathered(const Parameter& p) const { return p_.divides_parameters() || is_sliced(p) || stages_ > 1; }
  // Where the graph is that of the whole model, but this rank has a slice.
  bool is_sliced(const Parameter& p) const {
    const TensorId renamed = g_.find(whole_name(p));
    return p.slices > 1 && g_.shape(renamed == kNone ? g_.find(p.name) : renamed) != p.shape;
  }

  // For the nodes [begin, end) that read parameters of this block; to be started and to be waited for in front of two
  // other nodes.
  void gather(int layer, size_t start_at, size_t wait_at, size_t begin, size_t end) {
    std::vector<size_t> read;  // parameters, by their numbers in the table
    std::vector<TensorId> wholes, arrived;
    for (size_t i = 0; i < table_.size(); ++i) {
      const Parameter& p = table_[i];
      if (p.layer != layer || !is_gathered(p)) continue;
      const int64_t count = p_.divides_parameters() ? partition_.count(i, p_.rank) : p.shape.elements();
      own_piece_if_any(p, is_here(p) ? count : 0);
      const TensorId whole = g_.find(whole_name(p));
      if (!is_read(whole, begin, end)) continue;
      read.push_back(i);
      wholes.push_back(whole);
      arrived.push_back(g_.find(p.name));
    }
    if (read.empty()) return;
    g_.phase = Phase::forward, g_.layer = layer;
    const size_t nodes = g_.nodes.size();
    first_read_ = read[0];
    if (p_.divides_parameters()) arrived = gather_pieces(read, arrived);
    if (is_here(table_[read[0]]))
      for (const bool experts : {false, true}) join_slices(read, arrived, experts);
    if (stages_ > 1) arrived = share_among_stages(read, arrived);
    for (size_t n = nodes; n < g_.nodes.size(); ++n) {
      g_.nodes[n].attributes.set("again", true);
      std::vector<Node>& place = inserted_[n == nodes ? start_at : wait_at];
      place.insert(n == nodes ? place.begin() : place.end(), std::move(g_.nodes[n]));
    }
    g_.nodes.resize(nodes);
    for (size_t n = begin; n < end; ++n)
      for (TensorId& id : g_.nodes[n].inputs)
        for (size_t k = 0; k < wholes.size(); ++k)
          if (id == wholes[k]) id = arrived[k];
    g_.layer = -1;
  }

  static void add_shape(List& shapes, const Shape& shape) {
    shapes.push_back(shape.rank());
    for (int axis = 0; axis < shape.rank(); ++axis) shapes.push_back(shape[axis]);
  }

  // Stages number their exchanges by what is gathered, since they take part in different ones.
  std::vector<TensorId> exchange(const std::vector<TensorId>& pieces, const List& bounds, const List& shapes, bool bf16,
                                 const RankGroup& group, int level) {
    const int64_t channel =
        stages_ > 1 ? kGatherChannels + 3 * static_cast<int64_t>(first_read_) + level : ++g_.channels;
    Attributes a = group_attributes(group);
    a.set("bounds", bounds), a.set("shapes", shapes), a.set("bf16", bf16), a.set("channel", channel);
    const std::vector<TensorId> started = g_.add("piece_gather_start", a, pieces, "gather." + std::to_string(channel));
    return wait_for_exchange(g_, channel, started, pieces, "gathered");
  }

  int stage_of(const Parameter& p) const { return stages_ > 1 ? part_of(p, p_.cuts) % stages_ : 0; }
  bool is_here(const Parameter& p) const { return stage_of(p) == p_.mesh.place_of(p_.run_rank).stage; }

  // From the stage that has parameters to all.
  std::vector<TensorId> share_among_stages(const std::vector<size_t>& read, std::vector<TensorId> arrived) {
    List bounds, shapes;
    bool bf16 = false;
    for (size_t k = 0; k < read.size(); ++k) {
      const Parameter whole = whole_of(table_[read[k]]);
      if (!is_here(whole)) arrived[k] = kNone;
      bf16 = g_.dtype(g_.find(whole_name(whole))) == DType::bf16;
      for (int s = 0; s <= stages_; ++s) bounds.push_back(s <= stage_of(whole) ? 0 : whole.shape.elements());
      add_shape(shapes, whole.shape);
    }
    return exchange(arrived, bounds, shapes, bf16, p_.mesh.stage_group(p_.run_rank), 1);
  }

  // From the pieces that data-parallel ranks have to this rank's slices.
  std::vector<TensorId> gather_pieces(const std::vector<size_t>& read, std::vector<TensorId> pieces) {
    List bounds, shapes;
    bool bf16 = false;
    for (size_t k = 0; k < read.size(); ++k) {
      const size_t i = read[k];
      if (partition_.count(i, p_.rank) == 0) pieces[k] = kNone;
      bf16 = g_.dtype(g_.find(whole_name(table_[i]))) == DType::bf16;
      bounds.insert(bounds.end(), partition_.bounds[i].begin(), partition_.bounds[i].end());
      add_shape(shapes, table_[i].shape);
    }
    return exchange(pieces, bounds, shapes, bf16, p_.group(), 0);
  }

  // From the slices that tensor-parallel ranks have, or with `experts` expert-parallel ranks, to whole parameters.
  void join_slices(const std::vector<size_t>& read, std::vector<TensorId>& arrived, bool experts) {
    const auto is_joined = [&](const Parameter& p) { return is_sliced(p) && (p.experts > 0) == experts; };
    List bounds, shapes;
    std::vector<TensorId> sent;
    for (size_t k = 0; k < read.size(); ++k) {
      const Parameter& p = table_[read[k]];
      if (!is_joined(p)) continue;
      sent.push_back(arrived[k]);
      for (int64_t s = 0; s <= p.slices; ++s) bounds.push_back(s * p.shape.elements());
      add_shape(shapes, {p.slices, p.shape.elements()});
    }
    if (sent.empty()) return;
    const bool bf16 = g_.dtype(sent[0]) == DType::bf16;
    const std::vector<TensorId> slices =
        exchange(sent, bounds, shapes, bf16,
                 experts ? p_.mesh.expert_group(p_.run_rank) : p_.mesh.tensor_group(p_.run_rank), experts ? 2 : 0);
    auto next = slices.begin();
    for (size_t k = 0; k < read.size(); ++k) {
      const Parameter& p = table_[read[k]];
      if (!is_joined(p)) continue;
      const Parameter whole = whole_of(p);
      List parts, shape;
      for (int s = 0; s < p.slices; ++s)
        for (const CopiedPart& part : parts_of_slice(whole, p.slices, s, true)) {
          CopiedPart back = turned(part);
          back.from += s * p.shape.elements();
          add_part(parts, back);
        }
      for (int axis = 0; axis < whole.shape.rank(); ++axis) shape.push_back(whole.shape[axis]);
      arrived[k] = g_.add("copy_parts", {{"shape", shape}, {"parts", parts}}, {*next++}, p.name + ".joined")[0];
    }
  }

  void own_piece_if_any(const Parameter& p, int64_t count) {
    const bool is_new = g_.find(whole_name(p)) == kNone;
    if (count)
      own_piece(g_, p, count == p.shape.elements() ? p.shape : Shape{count});
    else if (is_new)
      g_.tensor(g_.find(p.name)).name = whole_name(p);
  }

  bool is_read(TensorId id, size_t begin, size_t end) const {
    for (size_t n = begin; n < end; ++n)
      if (std::count(g_.nodes[n].inputs.begin(), g_.nodes[n].inputs.end(), id)) return true;
    return false;
  }

  void insert() {
    std::vector<Node> nodes;
    for (size_t n = 0; n < g_.nodes.size(); ++n) {
      for (Node& node : inserted_[n]) nodes.push_back(std::move(node));
      nodes.push_back(std::move(g_.nodes[n]));
    }
    g_.nodes = std::move(nodes);
  }

  Graph& g_;
  const std::vector<Parameter>& table_;
  const DataParallel& p_;
  const Partition& partition_;
  int stages_;
  size_t first_read_ = 0;                         // the number of the first parameter that is being gathered
  std::map<size_t, std::vector<Node>> inserted_;  // by the node in front of which they go
};

}  // namespace

TensorId own_piece(Graph& g, const Parameter& p, const Shape& shape) {
  const TensorId known = g.find(whole_name(p)), whole = known == kNone ? g.find(p.name) : known;
  g.tensor(whole).name = whole_name(p);
  if (const TensorId piece = g.find(p.name); piece != kNone) return piece;
  const TensorId piece = g.add_tensor(p.name, g.dtype(whole), shape, Role::parameter);
  if (shape == g.shape(whole)) g.tensor(piece).spare_rows = g.tensor(whole).spare_rows;
  return piece;
}

void add_block_gathers(Graph& graph, const std::vector<Parameter>& table, const DataParallel& parallel,
                       const Partition& partition) {
  BlockGatherer(graph, table, parallel, partition).run();
}

}  // namespace llm
