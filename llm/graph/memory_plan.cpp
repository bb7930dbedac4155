// The memory plan: lifetimes from the order of the nodes; outputs laid over inputs whose last reader their node is;
// then a greedy placement, the largest tensor first, each at the lowest address that is free during its whole life
// (Pisarchyk and Lee 2020, "Efficient memory management for deep neural net inference", greedy by size).
#include <algorithm>
#include <numeric>

#include "llm/graph/op.h"
#include "llm/graph/passes.h"

namespace llm {
namespace {

// Tensors that share one place: a tensor without an alias, those that alias it, and outputs that are laid over it.
struct Group {
  int first = -1, last = -1;  // nodes of the first and the last use
  size_t bytes = 0, offset = 0;
};

class Planner {
 public:
  Planner(const Graph& graph, const std::vector<TensorId>& results, bool share) : g_(graph), share_(share) {
    group_of_.resize(g_.tensors.size());
    groups_.resize(g_.tensors.size());
    std::iota(group_of_.begin(), group_of_.end(), 0);
    for (size_t i = 0; i < g_.tensors.size(); ++i) {
      const auto id = static_cast<TensorId>(i);
      group_of_[i] = static_cast<size_t>(g_.storage(id));
      groups_[i].bytes = g_.tensors[i].storage_bytes();
    }
    const int end = static_cast<int>(g_.nodes.size());
    for (int n = 0; n < end; ++n) {
      const Node& node = g_.nodes[static_cast<size_t>(n)];
      for (TensorId id : node.inputs) touch(id, n);
      for (TensorId id : node.outputs) touch(id, n);
      touch(node.workspace, n);
    }
    // Inputs are written before the first node; results are read after the last node.
    for (size_t i = 0; i < g_.tensors.size(); ++i)
      if (g_.tensors[i].role == Role::input && groups_[i].first >= 0) groups_[i].first = 0;
    for (TensorId id : results) touch(id, end);
  }

  MemoryPlan run() {
    MemoryPlan plan;
    plan.lifetimes.resize(g_.tensors.size());
    for (size_t i = 0; i < g_.tensors.size(); ++i) plan.lifetimes[i] = {group(i).first, group(i).last};
    for (size_t i = 0; i < groups_.size(); ++i)
      if (is_placed(i)) plan.unshared_bytes += placed_bytes(groups_[i].bytes);
    if (share_) plan.in_place = lay_over_inputs();
    plan.bytes = place();
    plan.offsets.assign(g_.tensors.size(), MemoryPlan::kNowhere);
    for (size_t i = 0; i < g_.tensors.size(); ++i)
      if (is_placed(group_of_[i])) plan.offsets[i] = group(i).offset + g_.bytes_into_storage(static_cast<TensorId>(i));
    plan.live.assign(g_.nodes.size(), 0);
    for (size_t i = 0; i < groups_.size(); ++i)
      if (is_placed(i))
        for (int n = groups_[i].first; n <= groups_[i].last && n < static_cast<int>(plan.live.size()); ++n)
          plan.live[static_cast<size_t>(n)] += placed_bytes(groups_[i].bytes);
    return plan;
  }

 private:
  Group& group(size_t tensor) { return groups_[group_of_[tensor]]; }

  void touch(TensorId id, int n) {
    if (id == kNone) return;
    Group& g = group(static_cast<size_t>(id));
    if (g.first < 0) g.first = n;
    g.last = std::max(g.last, n);
  }

  // A group has the index of the tensor that owns its storage. A group that was laid over another one is no longer
  // placed.
  bool is_placed(size_t i) const {
    return group_of_[i] == i && groups_[i].first >= 0 && !is_persistent(g_.tensors[i].role);
  }

  size_t lay_over_inputs() {
    size_t count = 0;
    for (size_t n = 0; n < g_.nodes.size(); ++n) {
      const Node& node = g_.nodes[n];
      for (const InPlace& pair : node.op->in_place) {
        const TensorId out = node.output(static_cast<size_t>(pair.output)),
                       in = node.input(static_cast<size_t>(pair.input));
        if (out == kNone || in == kNone) continue;
        const auto o = static_cast<size_t>(out), i = static_cast<size_t>(in);
        const bool fresh =
            group_of_[o] == o && g_.tensor(out).role == Role::activation && groups_[o].first == static_cast<int>(n);
        if (!fresh || !is_placed(group_of_[i]) || g_.tensor(in).role != Role::activation) continue;
        Group& target = group(i);
        const bool ends_here = target.last == static_cast<int>(n) && target.first < static_cast<int>(n);
        const bool once = std::count(node.inputs.begin(), node.inputs.end(), in) == 1;
        if (!ends_here || !once || target.bytes != groups_[o].bytes || shared_with_other_input(node, in)) continue;
        target.last = std::max(target.last, groups_[o].last);
        for (size_t& member : group_of_)
          if (member == o) member = group_of_[i];
        ++count;
      }
    }
    return count;
  }

  // Whether another input lies in the same place as `in`: an output over `in` would then overwrite both.
  bool shared_with_other_input(const Node& node, TensorId in) const {
    return std::any_of(node.inputs.begin(), node.inputs.end(), [&](TensorId other) {
      return other != kNone && other != in &&
             group_of_[static_cast<size_t>(other)] == group_of_[static_cast<size_t>(in)];
    });
  }

  size_t place() {
    std::vector<size_t> order;
    for (size_t i = 0; i < groups_.size(); ++i)
      if (is_placed(i)) order.push_back(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return groups_[a].bytes > groups_[b].bytes; });
    std::vector<size_t> placed;  // by offset
    size_t top = 0;
    for (size_t i : order) {
      Group& g = groups_[i];
      const size_t bytes = placed_bytes(g.bytes);
      size_t offset = 0;
      if (share_) {
        for (size_t p : placed) {
          const Group& other = groups_[p];
          if (other.last < g.first || other.first > g.last) continue;
          if (offset + bytes <= other.offset) break;  // `g` fits into the gap in front of `other`
          offset = std::max(offset, other.offset + placed_bytes(other.bytes));
        }
      } else {
        offset = top;
      }
      g.offset = offset;
      placed.insert(std::upper_bound(placed.begin(), placed.end(), offset,
                                     [&](size_t o, size_t p) { return o < groups_[p].offset; }),
                    i);
      top = std::max(top, offset + bytes);
    }
    return top;
  }

  const Graph& g_;
  bool share_;
  std::vector<size_t> group_of_;  // by tensor: the index of its group
  std::vector<Group> groups_;     // by the tensor that owns the storage
};

}  // namespace

MemoryPlan plan_memory(const Graph& graph, const std::vector<TensorId>& results, bool share) {
  return Planner(graph, results, share).run();
}

}  // namespace llm
