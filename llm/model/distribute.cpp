#include "llm/model/distribute.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "llm/base/error.h"
#include "llm/base/rounding.h"
#include "llm/graph/autodiff.h"
#include "llm/model/own_pieces.h"
#include "llm/model/shard.h"
#include "llm/ops/exchange.h"
#include "llm/ops/ordered_sum.h"
#include "llm/ops/square_sums.h"

namespace llm {
namespace {

using List = std::vector<int64_t>;

// The loss is added up like a gradient; rank 0 owns its one element.
List bounds_of_loss(int ranks) {
  List bounds(static_cast<size_t>(ranks) + 1, 1);
  bounds[0] = 0;
  return bounds;
}

// In front of the weight gradients of so many layers, the embedding's are made: they are sent meanwhile.
constexpr int kDeferredLayers = 2;

// Without a bucket size of the user's: a block's gradients are sent in parts where they are more than this fraction of
// all, and more than so many bytes. The gradients that are complete last, which nothing hides, are then few.
constexpr size_t kMostBuckets = 32, kSmallestBucket = size_t{4} << 20;

// Gradients that are sent together.
struct Bucket {
  std::vector<size_t> parameters;  // their numbers in the table
  size_t last_node = 0;            // which completes them
  int layer = -1;
};

class Reducer {
 public:
  Reducer(Graph& graph, const std::vector<Parameter>& table, const std::vector<TensorId>& gradients, TensorId loss,
          const DataParallel& parallel, const Partition& partition, const std::vector<Parameter>& all)
      : g_(graph),
        table_(table),
        gradients_(gradients),
        p_(parallel),
        partition_(partition),
        all_(all),
        results_(table.size()),
        loss_(loss) {
    TreeStack tree(p_.virtual_ranks);
    for (int rank = 0; rank < p_.ranks; ++rank) {
      const std::vector<Subtree> sums = sums_of(virtual_ranks_of(rank, p_.ranks, p_.virtual_ranks), p_.virtual_ranks);
      sums_.push_back(static_cast<int64_t>(sums.size()));
      for (const Subtree& sum : sums) merges_.push_back(tree.push(sum));
    }
    // What the last virtual rank's gradients are added to before they are sent, by how much has been saved until then.
    TreeStack own(p_.virtual_ranks);
    for (int64_t v = p_.mine().first; v < p_.mine().last; ++v) {
      saved_ = own.sums().size();
      folds_ = static_cast<size_t>(own.push_leaf(v));
    }
    if (merges_.size() > kMostSums) fail("at most ", kMostSums, " sums of virtual ranks can be added");
    if (p_.zero >= 2 && p_.sends_at_once())
      for (const TensorId id : gradients) g_.tensor(g_.storage(id)).role = Role::activation;
  }

  Reduced run() {
    if (!is_alone()) defer_weight_gradients(g_, kDeferredLayers);
    std::vector<Node> nodes = std::move(g_.nodes);
    g_.nodes.clear();
    g_.phase = Phase::reduce;
    const std::vector<Bucket> buckets = buckets_of(nodes);
    size_t done = 0;
    for (const Bucket& bucket : buckets) {
      for (; done <= bucket.last_node && done < nodes.size(); ++done) g_.nodes.push_back(std::move(nodes[done]));
      g_.layer = bucket.layer;
      start(bucket, &bucket == &buckets.back());
      // The embedding's bucket is the largest by far: it stays under way to the end.
      if (!is_alone()) started_.back().stays = bucket.layer < 0 && &bucket != &buckets.front();
    }
    for (; done < nodes.size(); ++done) g_.nodes.push_back(std::move(nodes[done]));
    g_.layer = -1;
    for (const Started& s : started_) finish(s);
    return all_together();
  }

 private:
  bool is_alone() const { return p_.ranks == 1; }

  std::vector<Bucket> buckets_of(const std::vector<Node>& nodes) const {
    std::vector<size_t> completed(table_.size(), 0), order(table_.size());
    std::map<TensorId, size_t> parameter_of;  // by where its gradient lies
    for (size_t i = 0; i < table_.size(); ++i) {
      parameter_of[g_.storage(gradients_[i])] = i;
      if (const TensorId embedding = g_.find(embedding_gradient_of(table_[i].name)); embedding != kNone)
        parameter_of[embedding] = i;
    }
    for (size_t n = 0; n < nodes.size(); ++n)
      for (const TensorId id : nodes[n].outputs)
        if (const auto found = parameter_of.find(id == kNone ? kNone : g_.storage(id)); found != parameter_of.end())
          completed[found->second] = n;
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return completed[a] < completed[b]; });
    const auto bytes_of = [&](size_t i) { return static_cast<size_t>(table_[i].shape.elements()) * sizeof(float); };
    size_t all_bytes = 0;
    for (const size_t i : order) all_bytes += bytes_of(i);
    const size_t most = p_.bucket_bytes ? p_.bucket_bytes : std::max(kSmallestBucket, all_bytes / kMostBuckets);
    std::vector<Bucket> buckets;
    size_t bytes = 0;
    for (const size_t i : order) {
      const bool is_full =
          bytes >= most || (!p_.bucket_bytes && !buckets.empty() && buckets.back().layer != table_[i].layer);
      if (buckets.empty() || is_full) buckets.emplace_back().layer = table_[i].layer, bytes = 0;
      buckets.back().parameters.push_back(i);
      buckets.back().last_node = completed[i];
      bytes += bytes_of(i);
    }
    return buckets;
  }

  TensorId saved(TensorId of, size_t place) {
    const Tensor tensor = g_.tensor(of);
    const std::string name = saved_sum(tensor.name, place);
    if (const TensorId id = g_.find(name); id != kNone) return id;
    const TensorId id = g_.add_tensor(name, DType::fp32, tensor.shape, Role::state);
    g_.tensor(id).spare_rows = tensor.spare_rows;
    return id;
  }

  Attributes attributes(const List& bounds) { return attributes(bounds, p_.group()); }
  Attributes attributes(const List& bounds, const RankGroup& group) {
    Attributes a = group_attributes(group);
    a.set("bounds", bounds), a.set("channel", g_.channels);
    return a;
  }

  // What is under way: between these two nodes of a bucket lies the backward pass of the next one.
  struct Started {
    std::vector<TensorId> tensors;  // gradients, and perhaps the loss
    std::vector<size_t> parameters;
    List bounds;
    int64_t channel;
    std::vector<TensorId> own;  // own sums, as reduce_scatter_start takes them
    TensorId received;
    int layer;
    bool stays = false;  // until no other bucket is left
  };

  void start(const Bucket& bucket, bool with_loss) {
    Started s;
    s.parameters = bucket.parameters, s.layer = bucket.layer;
    for (const size_t i : bucket.parameters) {
      s.tensors.push_back(gradients_[i]);
      s.bounds.insert(s.bounds.end(), partition_.bounds[i].begin(), partition_.bounds[i].end());
    }
    for (const TensorId id : s.tensors)
      if (g_.find(g_.tensor(g_.storage(id)).name + ".embedding") != kNone) add_embedding_gradients(g_, Graph(g_));
    if (with_loss) {
      const List bounds = bounds_of_loss(p_.ranks);
      s.tensors.push_back(loss_);
      s.bounds.insert(s.bounds.end(), bounds.begin(), bounds.end());
    }
    for (size_t place = saved_; place-- > saved_ - folds_;) fold(s.tensors, place);
    for (size_t place = 0; place < saved_ - folds_; ++place)
      for (const TensorId id : s.tensors) s.own.push_back(saved(id, place));
    s.own.insert(s.own.end(), s.tensors.begin(), s.tensors.end());
    if (is_alone()) {
      for (size_t k = 0; k < s.parameters.size(); ++k) results_[s.parameters[k]] = s.tensors[k];
      add_over_tokens(s.parameters, with_loss);
      return;
    }
    s.channel = ++g_.channels;
    Attributes a = attributes(s.bounds);
    a.set("sums", sums_);
    s.received = g_.add("reduce_scatter_start", a, s.own, "received." + std::to_string(s.channel))[0];
    // One other bucket is under way at a time: what is received would otherwise take as much memory as all gradients.
    std::erase_if(started_, [&](const Started& other) {
      if (!other.stays) finish(other);
      return !other.stays;
    });
    started_.push_back(std::move(s));
  }

  void fold(const std::vector<TensorId>& tensors, size_t place) {
    std::vector<TensorId> pairs;
    for (const TensorId id : tensors) pairs.push_back(saved(id, place)), pairs.push_back(id);
    g_.add("fold", {{"save", false}}, pairs, "fold");
  }

  void finish(const Started& s) {
    const int layer = std::exchange(g_.layer, s.layer);
    std::vector<TensorId> summed = wait_for_exchange(g_, s.channel, {s.received}, s.own, "arrived");
    summed.insert(summed.end(), s.own.begin(), s.own.end());
    Attributes a = attributes(s.bounds);
    a.set("sums", sums_), a.set("merges", merges_);
    // Where the whole gradient need not stay, the loss alone does.
    const size_t freed = p_.zero >= 2 && p_.sends_at_once() ? s.parameters.size() : 0;
    a.set("in_place", static_cast<int64_t>(s.tensors.size() - freed));
    const std::vector<TensorId> sums = g_.add("ordered_sum", a, summed, "sum");
    for (size_t k = 0; k < s.parameters.size(); ++k) {
      results_[s.parameters[k]] = sums[k];
      if (sums[k] != kNone) g_.tensor(sums[k]).name = table_[s.parameters[k]].name + ".grad.sum";
    }
    add_over_tokens(s.parameters, s.tensors.size() > s.parameters.size() && p_.rank == 0);
    if (p_.zero == 0)
      gather(s.tensors, s.bounds);
    else if (s.tensors.size() > s.parameters.size())
      gather({loss_of(s)}, bounds_of_loss(p_.ranks));
    g_.layer = layer;
  }
  // What ranks with other tokens or slices have in common, they add up, piece by piece.
  void add_over_tokens(const std::vector<size_t>& parameters, bool with_loss) {
    enum Kind { whole, matrices, experts };
    const RankGroup groups[] = {p_.mesh.token_group(p_.run_rank), p_.mesh.same_matrices(p_.run_rank),
                                p_.mesh.same_experts(p_.run_rank)};
    for (const Kind kind : {whole, matrices, experts}) {
      std::vector<TensorId> pieces;
      for (const size_t i : parameters)
        if ((table_[i].slices == 1 ? whole : table_[i].experts ? experts : matrices) == kind && results_[i] != kNone)
          pieces.push_back(results_[i]);
      if (with_loss && kind == whole) pieces.push_back(loss_);
      add_over(pieces, groups[kind]);
    }
    // Ranks with the same key-value heads have the gradients of their own query heads.
    RankGroup sharing;
    std::vector<TensorId> pieces;
    for (const size_t i : parameters) {
      if (!table_[i].shares_rows()) continue;
      sharing = sharing_group(table_[i], p_.mesh, p_.run_rank);
      if (const auto [own, shared] = divided(i); shared.id != kNone) pieces.push_back(shared.id);
    }
    add_over(pieces, sharing);
  }

  // Of the summed gradient that this rank has of a parameter: what no other tensor-parallel rank has, and what it has in
  // common with others; kNone where it has none of them. `first`: of the slice's elements.
  struct Portion {
    TensorId id = kNone;
    int64_t first = 0;
  };
  std::pair<Portion, Portion> divided(size_t i) {
    if (results_[i] == kNone) return {};
    const int64_t begin = partition_.first(i, p_.rank);
    const int64_t end = begin + g_.shape(results_[i]).elements();
    const int64_t border = table_[i].shares_rows() ? std::clamp(first_shared(table_[i]), begin, end) : end;
    const auto portion = [&](int64_t from, int64_t to, const char* name) -> Portion {
      if (from == to) return {};
      if (from == begin && to == end) return {results_[i], from};
      return {g_.add_view(table_[i].name + name, results_[i], {to - from}, from - begin), from};
    };
    return {portion(begin, border, ".grad.own"), portion(border, end, ".grad.shared")};
  }

  // Each rank of the group gets the sums of all their tensors.
  void add_over(const std::vector<TensorId>& tensors, const RankGroup& group) {
    if (group.is_alone()) return;
    if (tensors.empty()) {
      g_.channels += 2;  // those of the other ranks
      return;
    }
    List bounds, merges;
    for (const TensorId id : tensors)
      for (int64_t r = 0; r <= group.ranks; ++r) bounds.push_back(g_.shape(id).elements() * r / group.ranks);
    TreeStack tree(group.ranks);
    for (int r = 0; r < group.ranks; ++r) merges.push_back(tree.push_leaf(r));
    ++g_.channels;
    Attributes a = attributes(bounds, group);
    a.set("sums", List(static_cast<size_t>(group.ranks), 1));
    const std::vector<TensorId> started =
        g_.add("reduce_scatter_start", a, tensors, "tokens." + std::to_string(g_.channels));
    std::vector<TensorId> summed = wait_for_exchange(g_, g_.channels, started, tensors, "arrived");
    summed.insert(summed.end(), tensors.begin(), tensors.end());
    a.set("merges", merges), a.set("in_place", static_cast<int64_t>(tensors.size()));
    g_.add("ordered_sum", a, summed, "sum");
    ++g_.channels;
    const std::vector<TensorId> whole =
        g_.add("all_gather_start", attributes(bounds, group), tensors, "tokens." + std::to_string(g_.channels));
    wait_for_exchange(g_, g_.channels, whole, {}, "tokens");
  }

  TensorId loss_of(const Started& s) const { return s.tensors.back(); }

  void gather(const std::vector<TensorId>& tensors, const List& bounds) {
    Gather all{++g_.channels, {}, g_.layer};
    all.tensors = g_.add("all_gather_start", attributes(bounds), tensors, "gather." + std::to_string(all.channel));
    gathers_.push_back(std::move(all));
  }

  // A tensor of which each rank of the group has its piece, with all of them.
  TensorId gather_now(TensorId id, const List& bounds, const RankGroup& group, int64_t channel, const char* name) {
    Attributes a = attributes(bounds, group);
    a.set("channel", channel);
    return wait_for_exchange(g_, channel, g_.add("all_gather_start", a, {id}, name), {}, name)[0];
  }

  // One more where a slice is summed up in two portions, which need not meet at the end of a block.
  static int64_t slots_of_slice(const Parameter& p) {
    return square_sum_blocks(p.shape.elements()) + (p.shares_rows() ? 1 : 0);
  }

  // The norm of the sums and the loss, for which all ranks wait for each other; and, without ZeRO, all sums.
  Reduced all_together() {
    Reduced r;
    std::vector<TensorId> pieces;
    List first_slots;
    int64_t slots = 0;
    std::map<std::string, int64_t> slot_of;  // by parameter, of its first slice
    for (const Parameter& p : all_) {
      if (p.group == LearningRateGroup::balance) continue;
      slot_of[p.name] = slots;
      slots += p.slices * slots_of_slice(p);
    }
    const Mesh::Place place = p_.mesh.place_of(p_.run_rank);
    // What a phase starts it also waits for, so that each phase is a whole for a GPU that replays it.
    for (const Gather& gather : gathers_) wait_for_exchange(g_, gather.channel, gather.tensors, {}, "gathered");
    g_.phase = Phase::optimizer;
    for (size_t i = 0; i < table_.size(); ++i) {
      if (table_[i].group == LearningRateGroup::balance) continue;  // what it has is no gradient
      // Of what several ranks have, the first speaks.
      const int slice = table_[i].slices > 1 ? slice_at(table_[i], place) : 0;
      const bool is_first = table_[i].slices == 1   ? p_.mesh.token_group(p_.run_rank).rank == 0
                            : table_[i].experts > 0 ? place.context == 0 && place.tensor == 0
                                                    : place.context == 0 && place.expert == 0;
      const bool is_first_with_shared =
          is_first && (!table_[i].shares_rows() || sharing_group(table_[i], p_.mesh, p_.run_rank).rank == 0);
      const int64_t first_slot = slot_of.at(table_[i].name) + slice * slots_of_slice(table_[i]);
      const auto [own, shared] = divided(i);
      const auto add = [&](const Portion& portion, bool counts, int64_t slot) {
        pieces.push_back(counts ? portion.id : kNone);
        first_slots.push_back(slot + portion.first / kGradientNormBlock);
      };
      add(own, is_first, first_slot);
      if (table_[i].shares_rows()) add(shared, is_first_with_shared, first_slot + 1);
    }
    if (p_.mesh.stage > 1) {
      const RankGroup stages = p_.mesh.stage_group(p_.run_rank);
      List last(static_cast<size_t>(stages.ranks) + 1, 0);
      last.back() = 1;
      loss_ = gather_now(loss_, last, stages, kStageLossChannel, "loss");
    }
    const RankGroup run = p_.all();
    TensorId squares = g_.add(
        "square_sums", {{"rank", run.rank}, {"ranks", run.ranks}, {"slots", slots}, {"first_slots", first_slots}},
        pieces, "squares")[0];
    if (!run.is_alone()) {
      List rows;
      for (int rank = 0; rank <= run.ranks; ++rank) rows.push_back(rank * slots);
      squares = gather_now(squares, rows, run, p_.mesh.stage > 1 ? kWorldChannel : ++g_.channels, "squares");
    }
    r.norm = g_.add("gradient_norm", {}, {squares}, "gradient_norm")[0];
    r.loss = loss_;
    for (size_t i = 0; i < table_.size(); ++i) {
      const TensorId whole = g_.find(table_[i].name);
      if (p_.zero == 0 || is_alone())
        r.stepped.push_back({whole, gradients_[i], table_[i].shape});
      else
        r.stepped.push_back(piece_of(i, whole));
    }
    return r;
  }

  Stepped piece_of(size_t i, TensorId parameter) {
    const int64_t first = partition_.first(i, p_.rank), count = partition_.count(i, p_.rank);
    if (count == 0) return {};
    const bool is_whole = count == table_[i].shape.elements();
    const Shape shape = is_whole ? table_[i].shape : Shape{count};
    const TensorId gradient =
        is_whole ? g_.add_view(table_[i].name + ".grad.whole", results_[i], shape, 0) : results_[i];
    const TensorId piece = p_.divides_parameters() ? own_piece(g_, table_[i], shape)
                           : is_whole              ? parameter
                                                   : g_.add_view(table_[i].name + ".piece", parameter, shape, first);
    return {piece, gradient, shape, first};
  }

  struct Gather {
    int64_t channel;
    std::vector<TensorId> tensors;
    int layer;
  };

  Graph& g_;
  const std::vector<Parameter>& table_;
  const std::vector<TensorId>& gradients_;
  const DataParallel& p_;
  const Partition& partition_;
  const std::vector<Parameter>& all_;
  List sums_, merges_;
  size_t saved_ = 0, folds_ = 0;
  std::vector<TensorId> results_;  // by parameter: the summed gradient, of the piece that is owned here
  TensorId loss_;
  std::vector<Started> started_;
  std::vector<Gather> gathers_;
};

}  // namespace

Reduced add_reduction(Graph& graph, const std::vector<Parameter>& table, const std::vector<TensorId>& gradients,
                      TensorId loss, const DataParallel& parallel, const Partition& partition,
                      const std::vector<Parameter>& all) {
  return Reducer(graph, table, gradients, loss, parallel, partition, all).run();
}

}  // namespace llm
