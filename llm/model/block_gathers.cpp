// The part of distribute.h for parameters that are divided: gathers of the blocks' parameters.
#include <algorithm>
#include <map>

#include "llm/model/distribute.h"
#include "llm/model/own_pieces.h"
#include "llm/ops/row_exchange.h"

namespace llm {
namespace {

using List = std::vector<int64_t>;

// Gathers the parameters of a block in front of its first node; that begins in front of the block before it.
class BlockGatherer {
 public:
  BlockGatherer(Graph& graph, const std::vector<Parameter>& table, const DataParallel& parallel,
                const Partition& partition)
      : g_(graph), table_(table), p_(parallel), partition_(partition), channel_(last_channel(graph)) {}

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
      const TensorId whole = g_.find(whole_name(p));  // none: of a block that this graph does not have
      g_.tensor(whole == kNone ? g_.find(p.name) : whole).role = Role::activation;
    }
  }

 private:
  // For the nodes [begin, end) that read parameters of this block; to be started and to be waited for in front of two
  // other nodes.
  void gather(int layer, size_t start_at, size_t wait_at, size_t begin, size_t end) {
    std::vector<TensorId> pieces, wholes;
    List bounds, shapes;
    for (size_t i = 0; i < table_.size(); ++i) {
      const Parameter& p = table_[i];
      if (p.layer != layer) continue;
      const int64_t count = partition_.count(i, p_.rank);
      own_piece_if_any(p, count);
      const TensorId whole = g_.find(whole_name(p));
      if (!is_read(whole, begin, end)) continue;
      wholes.push_back(whole);
      pieces.push_back(count ? g_.find(p.name) : kNone);
      bounds.insert(bounds.end(), partition_.bounds[i].begin(), partition_.bounds[i].end());
      shapes.push_back(p.shape.rank());
      for (int axis = 0; axis < p.shape.rank(); ++axis) shapes.push_back(p.shape[axis]);
    }
    if (wholes.empty()) return;
    g_.phase = Phase::forward, g_.layer = layer;
    const size_t nodes = g_.nodes.size();
    Attributes a = group_attributes(p_.group());
    a.set("bounds", bounds), a.set("shapes", shapes), a.set("bf16", g_.dtype(wholes[0]) == DType::bf16);
    a.set("channel", ++channel_), a.set("again", true);
    const std::vector<TensorId> started = g_.add("piece_gather_start", a, pieces, "gather." + std::to_string(channel_));
    const std::vector<TensorId> arrived = g_.add(
        "exchange_wait", {{"channel", channel_}, {"arrivals", static_cast<int64_t>(started.size())}, {"again", true}},
        started, "gathered");
    inserted_[wait_at].push_back(std::move(g_.nodes.back()));
    inserted_[start_at].insert(inserted_[start_at].begin(), std::move(g_.nodes[nodes]));
    g_.nodes.resize(nodes);
    for (size_t n = begin; n < end; ++n)
      for (TensorId& id : g_.nodes[n].inputs)
        for (size_t k = 0; k < wholes.size(); ++k)
          if (id == wholes[k]) id = arrived[k];
    g_.layer = -1;
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
  int64_t channel_;
  std::map<size_t, std::vector<Node>> inserted_;  // by the node in front of which they go
};

}  // namespace

TensorId own_piece(Graph& g, const Parameter& p, const Shape& shape) {
  const TensorId known = g.find(whole_name(p)), whole = known == kNone ? g.find(p.name) : known;
  g.tensor(whole).name = whole_name(p);
  if (const TensorId piece = g.find(p.name); piece != kNone) return piece;
  return g.add_tensor(p.name, g.dtype(whole), shape, Role::parameter);
}

void add_block_gathers(Graph& graph, const std::vector<Parameter>& table, const DataParallel& parallel,
                       const Partition& partition) {
  BlockGatherer(graph, table, parallel, partition).run();
}

}  // namespace llm
