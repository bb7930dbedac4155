#include "llm/model/optimizer.h"

#include <algorithm>
#include <array>
#include <map>
#include <tuple>

#include "llm/base/error.h"
#include "llm/model/muon_slices.h"

namespace llm {
namespace {

// Five steps for singular values in (0, 1), with room for the rounding of bf16 (as in modded-nanogpt: five steps,
// safety factor 2e-2, cushion 2).
constexpr double kMargin = 1.02;
constexpr std::array<std::array<double, 3>, 5> kPolarExpress = {{
    {8.156554524902461, -22.48329292557795, 15.878769915207462},
    {4.042929935166739, -2.808917465908714, 0.5000178451051316},
    {3.8916678022926607, -2.772484153217685, 0.5060648178503393},
    {3.285753657755655, -2.3681294933425376, 0.46449024233003106},
    {2.3465413258596377, -1.7097828382687081, 0.42323551169305323},
}};
constexpr double kGuardAfter = 50;  // steps; before, too little is known of loss and norm
// Elements whose state is fetched together, about: some milliseconds of copying. A multiple of 8, as adamw's pieces are.
constexpr int64_t kFetchedElements = int64_t{4} << 20;
constexpr double kUpdateSize = 0.2;  // root mean square of an update's elements, in learning rates; about that of AdamW

template <class T>
void add_if_new(std::vector<T>& values, const T& value) {
  if (std::find(values.begin(), values.end(), value) == values.end()) values.push_back(value);
}

class StepBuilder {
 public:
  StepBuilder(Graph& graph, const std::vector<Parameter>& table, const std::vector<Stepped>& stepped, TensorId norm,
              const OptimizerOptions& options, const RankGroup& tensor)
      : g_(graph),
        table_(table),
        stepped_(stepped),
        o_(options),
        bf16_(graph.dtype(graph.find(table[0].name)) == DType::bf16),
        norm_(norm),
        tensor_(tensor),
        owners_(muon_owners(table, options.kind, tensor.ranks)) {}

  TensorId run(TensorId loss) {
    for (const Parameter& p : table_) layers_ = std::max(layers_, p.layer + 1);
    first_channel_ = g_.channels + 1;
    if (!tensor_.is_alone()) g_.channels += 2 * (layers_ + 1);
    if (o_.guard_deviations > 0) {
      const TensorId statistics = g_.add_tensor(kGuardState, DType::fp32, {kGuardStatistics}, Role::state);
      norm_ = g_.add("step_guard", {{"deviations", o_.guard_deviations}, {"after", kGuardAfter}},
                     {norm_, loss, statistics}, "guarded_norm")[0];
    }
    std::vector<Group> groups = adamw_groups();
    // Muon takes the matrices of one block at a time: few nodes, and little memory between them.
    for (size_t i = 0; i < table_.size();) {
      Group matrices{.layer = table_[i].layer};
      for (; i < table_.size() && table_[i].layer == matrices.layer; ++i)
        if (takes_muon(table_[i], o_.kind) && is_mine(i)) matrices.parts.push_back(whole(i));
      if (!matrices.parts.empty()) groups.push_back(matrices);
    }
    if (o_.offload)
      step_offloaded(groups);
    else
      for (const Group& group : groups) step(group);
    return norm_;
  }

 private:
  // Of the two exchanges of a layer's matrices, the first. Other data-parallel ranks step other layers.
  int64_t channel_of(int layer) const { return first_channel_ + 2 * (layer + 1); }

  // Elements [first, first + count) of what is stepped of parameter number i.
  struct Part {
    size_t i;
    int64_t first, count;
  };
  // What is stepped together: by AdamW, all with the same settings, or by Muon.
  struct Group {
    std::vector<Part> parts = {};
    int layer = -1;
  };
  Part whole(size_t i) const { return {i, 0, stepped_[i].shape.elements()}; }

  void step(const Group& group) {
    takes_muon(table_[group.parts[0].i], o_.kind)
        ? muon(group.parts, channel_of(group.layer), concat("layers.", group.layer, ".step"))
        : adamw(group.parts);
  }

  // A part of a tensor that has the shape of what is stepped.
  TensorId cut(TensorId id, const Part& part) {
    if (id == kNone || part.count == stepped_[part.i].shape.elements()) return id;
    return g_.add_view(concat(g_.tensor(id).name, ".", part.first), id, {part.count}, part.first);
  }

  // The state of the next group is on its way to the device, and that of the group before on its way back, while a group
  // is stepped.
  void step_offloaded(const std::vector<Group>& groups) {
    std::vector<Transfer> fetched, stored;
    for (size_t k = 0; k <= groups.size(); ++k) {
      if (k < groups.size()) fetched.push_back(fetch(groups[k]));
      if (k == 0) continue;
      wait(fetched[k - 1], true);
      step(groups[k - 1]);
      stored.push_back(store(fetched[k - 1]));
      if (k > 1) wait(stored[k - 2], false);
    }
    if (!stored.empty()) wait(stored.back(), false);
  }

  // State between the host and the device.
  struct Transfer {
    int64_t number = 0;
    std::vector<std::string> names = {};
    std::vector<TensorId> on_host = {}, arriving = {}, leaving = {};
  };

  Transfer fetch(const Group& group) {
    Transfer t{.number = ++transfers_};
    for (const Part& part : group.parts) {
      const size_t i = part.i;
      const auto add = [&](const char* suffix, const Shape& shape) {
        const std::string name = table_[i].name + suffix;
        TensorId state = g_.find(name);
        if (state == kNone) state = g_.add_tensor(name, DType::fp32, shape, Role::state);
        g_.tensor(state).on_host = true;
        t.names.push_back(name);
        t.on_host.push_back(shape == stepped_[i].shape ? cut(state, part) : state);
      };
      if (!takes_muon(table_[i], o_.kind))
        add(".first_moment", stepped_[i].shape), add(".second_moment", stepped_[i].shape);
      else if (has_momentum(i))
        add(".momentum", stepped_by_muon(table_[i]).shape);
      if (bf16_) add(".master", stepped_[i].shape);
    }
    t.arriving = g_.add("fetch_start", {{"transfer", t.number}}, t.on_host, concat("fetch.", t.number));
    t.leaving = t.on_host;
    return t;
  }

  Transfer store(const Transfer& fetched) {
    Transfer t{.number = ++transfers_, .on_host = fetched.on_host, .leaving = fetched.arriving};
    for (TensorId& id : t.leaving) id = newest(id);
    std::vector<TensorId> inputs = t.leaving;
    inputs.insert(inputs.end(), t.on_host.begin(), t.on_host.end());
    t.arriving = g_.add("store_start", {{"transfer", t.number}}, inputs, concat("store.", t.number));
    return t;
  }

  void wait(const Transfer& t, bool is_used) {
    std::vector<TensorId> inputs = t.arriving;
    inputs.insert(inputs.end(), t.leaving.begin(), t.leaving.end());
    const std::vector<TensorId> arrived =
        g_.add("copy_wait", {{"transfer", t.number}, {"arrivals", static_cast<int64_t>(t.arriving.size())}}, inputs,
               concat("arrived.", t.number));
    for (size_t i = 0; i < arrived.size() && is_used; ++i) fetched_[t.names[i]] = arrived[i];
  }

  // What the last node that writes there has left in the storage of a tensor.
  TensorId newest(TensorId id) const {
    const TensorId storage = g_.storage(id);
    auto i = static_cast<TensorId>(g_.tensors.size());
    while (g_.storage(--i) != storage) continue;
    return i;
  }

  bool is_mine(size_t i) const { return stepped_[i].parameter != kNone; }
  TensorId state(size_t i, const std::string& name) {
    if (o_.offload) return fetched_.at(name);
    return g_.add_tensor(name, DType::fp32, stepped_[i].shape, Role::state);
  }
  TensorId momentum(size_t i) {
    const std::string name = table_[i].name + ".momentum";
    if (o_.offload) return fetched_.at(name);
    return g_.add_tensor(name, DType::fp32, stepped_by_muon(table_[i]).shape, Role::state);
  }
  TensorId master(size_t i) { return bf16_ ? state(i, master_of(table_[i].name)) : kNone; }

  // One for all parameters with the same settings; where their state is fetched, several.
  std::vector<Group> adamw_groups() const {
    using Settings = std::tuple<bool, double, double, bool>;
    const auto settings_of = [](const Parameter& p) {
      return Settings{p.decay, p.adamw_rate, p.epsilon, p.group == LearningRateGroup::balance};
    };
    std::vector<Settings> all;
    for (const Parameter& p : table_)
      if (!takes_muon(p, o_.kind)) add_if_new(all, settings_of(p));
    std::vector<Group> groups;
    for (const Settings& settings : all) {
      int64_t room = 0;  // in the last group, for elements
      for (size_t i = 0; i < table_.size(); ++i) {
        if (settings_of(table_[i]) != settings || takes_muon(table_[i], o_.kind) || !is_mine(i)) continue;
        const int64_t elements = stepped_[i].shape.elements();
        for (int64_t first = 0; first < elements;) {
          if (room == 0) groups.emplace_back(), room = o_.offload ? kFetchedElements : INT64_MAX;
          const int64_t count = std::min(elements - first, room);
          groups.back().parts.push_back({i, first, count});
          // The next part begins at a multiple of 8.
          first += count, room = o_.offload ? (room - count) / 8 * 8 : room;
        }
      }
    }
    return groups;
  }

  void adamw(const std::vector<Part>& parts) {
    const Parameter& first = table_[parts[0].i];
    std::vector<TensorId> inputs = {norm_};
    std::vector<int64_t> firsts;
    for (const Part& part : parts) {
      const size_t i = part.i;
      const std::string& name = table_[i].name;
      inputs.insert(inputs.end(), {cut(stepped_[i].parameter, part), cut(stepped_[i].gradient, part),
                                   state(i, name + ".first_moment"), state(i, name + ".second_moment"), master(i)});
      firsts.push_back(stepped_[i].first + part.first);
    }
    // Without moments a step goes by the sign alone: a bias moves by the same amount whatever the load.
    const bool balance = first.group == LearningRateGroup::balance;
    g_.add("adamw",
           {{"beta1", balance ? 0.0 : o_.beta1},
            {"beta2", balance ? 0.0 : o_.beta2},
            {"epsilon", o_.epsilon * first.epsilon},
            {"weight_decay", first.decay ? o_.weight_decay / first.adamw_rate : 0.0},
            {"grad_clip", o_.grad_clip},
            {"learning_rate_scale", first.adamw_rate},
            {"firsts", firsts}},
           inputs,
           first.decay ? "step.decayed"
           : balance   ? "step.balance"
                       : "step.others");
  }

  bool is_cut(size_t i) const { return owners_[i] >= 0; }
  bool has_momentum(size_t i) const { return !is_cut(i) || owners_[i] == tensor_.rank; }

  // A matrix that Muon steps, whole.
  struct Matrix {
    size_t i;
    TensorId gradient;
    std::vector<int64_t> rows;      // of its parts
    std::vector<TensorId> updates;  // of each, or of this rank's slice of it

    // Takes its updates from a list of several matrices'; returns the place behind them.
    auto take(std::vector<TensorId>::const_iterator next) {
      const auto end = next + static_cast<std::ptrdiff_t>(rows.size());
      updates.assign(next, end);
      return end;
    }
  };

  void muon(const std::vector<Part>& parts, int64_t channel, const std::string& name) {
    std::vector<Matrix> matrices;
    std::vector<SlicedMatrix> cut;
    for (const Part& part : parts) {
      const Parameter whole = stepped_by_muon(table_[part.i]);
      matrices.push_back(
          {part.i, stepped_[part.i].gradient, whole.joined.empty() ? std::vector{whole.shape[0]} : whole.joined, {}});
      if (is_cut(part.i)) cut.push_back({&table_[part.i], owners_[part.i], stepped_[part.i].gradient});
    }
    if (!cut.empty()) {
      const std::vector<TensorId> gradients = gather_gradients(g_, cut, tensor_, channel, name);
      auto next = gradients.begin();
      for (Matrix& m : matrices)
        if (is_cut(m.i)) m.gradient = *next++;
    }
    find_updates(matrices, name);
    if (!cut.empty()) {
      std::vector<std::vector<TensorId>> updates;
      for (const Matrix& m : matrices)
        if (is_cut(m.i)) updates.push_back(m.updates);
      const std::vector<TensorId> slices = share_updates(g_, cut, updates, bf16_, tensor_, channel + 1, name);
      auto next = slices.begin();
      for (Matrix& m : matrices)
        if (is_cut(m.i)) next = m.take(next);
    }
    apply(matrices, name);
  }

  void find_updates(std::vector<Matrix>& matrices, const std::string& name) {
    std::vector<TensorId> inputs = {norm_};
    std::vector<int64_t> all_rows;
    for (const Matrix& m : matrices) {
      if (!has_momentum(m.i)) continue;
      inputs.insert(inputs.end(), {m.gradient, momentum(m.i)});
      all_rows.insert(all_rows.end(), m.rows.begin(), m.rows.end());
    }
    if (all_rows.empty()) return;
    const Attributes attributes = {{"momentum", o_.momentum},
                                   {"grad_clip", o_.grad_clip},
                                   {"margin", kMargin},
                                   {"bf16", bf16_},
                                   {"rows", all_rows}};
    const std::vector<TensorId> outputs = g_.add("muon_momentum", attributes, inputs, name);
    const std::vector<TensorId> x =
        orthogonal({outputs.end() - static_cast<std::ptrdiff_t>(all_rows.size()), outputs.end()}, name);
    auto next = x.begin();
    for (Matrix& m : matrices)
      if (has_momentum(m.i)) next = m.take(next);
  }

  void apply(const std::vector<Matrix>& matrices, const std::string& name) {
    // Rate, slices of rows, slices of columns, slices of rows of all parts but the first.
    using Settings = std::tuple<double, int, int, int>;
    const auto settings_of = [](const Parameter& p) {
      const int slices = p.experts ? 1 : p.slices;
      const int rows = p.shard_axis == 0 ? slices : 1;
      return Settings{p.muon_rate, rows, p.shard_axis == 1 ? slices : 1,
                      p.heads.empty() ? rows : static_cast<int>(p.different_slices(1, rows))};
    };
    std::vector<Settings> all;
    for (const Matrix& m : matrices) add_if_new(all, settings_of(table_[m.i]));
    for (const Settings& settings : all) {
      const auto [rate, row_slices, column_slices, other_row_slices] = settings;
      std::vector<TensorId> applied = {norm_};
      for (const Matrix& m : matrices) {
        if (settings_of(table_[m.i]) != settings) continue;
        applied.insert(applied.end(), {stepped_[m.i].parameter, master(m.i)});
        applied.insert(applied.end(), m.updates.begin(), m.updates.end());
      }
      Attributes a = {{"weight_decay", o_.weight_decay / rate}, {"rms", kUpdateSize}, {"learning_rate_scale", rate}};
      if (row_slices * column_slices > 1) a.set("row_slices", row_slices), a.set("column_slices", column_slices);
      if (other_row_slices != row_slices) a.set("other_row_slices", other_row_slices);
      g_.add("muon_apply", a, applied, name + ".apply");
    }
  }

  // Makes of each x (nearly) the orthogonal matrix closest to it. A tall x takes the smaller products: x^T x, and x
  // times the polynomial.
  std::vector<TensorId> orthogonal(std::vector<TensorId> x, const std::string& name) {
    for (const auto& [a, b, c] : kPolarExpress) {
      std::vector<TensorId> squares, products;
      for (TensorId id : x) {
        const TensorId square = gram(id, name);
        squares.insert(squares.end(), {square, g_.add("linear", {}, {square, square}, name + ".fourth")[0]});
      }
      const std::vector<TensorId> polynomial = g_.add("combine", {{"a", b}, {"b", c}}, squares, name + ".polynomial");
      for (size_t k = 0; k < x.size(); ++k) {
        const std::vector<TensorId> tall = {x[k], polynomial[k]}, wide = {polynomial[k], x[k]};
        products.insert(products.end(),
                        {x[k], is_tall(x[k]) ? g_.add("linear", {}, tall, name + ".product")[0]
                                             : g_.add("linear_backward_input", {}, wide, name + ".product")[0]});
      }
      x = g_.add("combine", {{"a", a}, {"b", 1}}, products, name + ".x");
    }
    return x;
  }

  bool is_tall(TensorId x) const { return g_.shape(x)[0] > g_.shape(x)[1]; }

  TensorId gram(TensorId x, const std::string& name) {
    if (!is_tall(x)) return g_.add("linear", {}, {x, x}, name + ".square")[0];
    const TensorId square = g_.add("linear_backward_weight", {}, {x, x}, name + ".square")[0];  // in fp32
    return bf16_ ? g_.add("cast", {{"bf16", true}}, {square}, name + ".square")[0] : square;
  }

  Graph& g_;
  const std::vector<Parameter>& table_;
  const std::vector<Stepped>& stepped_;
  const OptimizerOptions& o_;
  bool bf16_;
  TensorId norm_;
  RankGroup tensor_;
  std::vector<int> owners_;  // by parameter: which of those ranks makes Muon's step of a matrix that is cut; -1: each
  int layers_ = 0;
  int64_t first_channel_ = 0, transfers_ = 0;
  std::map<std::string, TensorId> fetched_;  // state that is on the device, by name
};

}  // namespace

bool takes_muon(const Parameter& p, OptimizerKind kind) {
  return kind == OptimizerKind::muon && p.group == LearningRateGroup::matrix && p.shape.rank() == 2;
}

double muon_flops(const Parameter& p) {
  double flops = 0;
  for (const int64_t rows : p.joined.empty() ? std::vector{p.shape[0]} : p.joined) {
    const auto small = static_cast<double>(std::min(rows, p.shape[1]));
    const auto large = static_cast<double>(std::max(rows, p.shape[1]));
    flops += kPolarExpress.size() * (4 * small * small * large + 2 * small * small * small);
  }
  return flops;
}

double muon_flops(const ModelConfig& config) {
  double flops = 0;
  for (const Parameter& p : parameter_table(config))
    if (takes_muon(p, OptimizerKind::muon)) flops += muon_flops(p);
  return flops;
}

std::vector<StateTensor> optimizer_state(const std::vector<Parameter>& table, OptimizerKind kind) {
  std::vector<StateTensor> result;
  for (const Parameter& p : table) {
    if (takes_muon(p, kind)) {
      result.push_back({p.name + ".momentum", p.shape});
    } else {
      for (const char* moment : {".first_moment", ".second_moment"}) result.push_back({p.name + moment, p.shape});
    }
  }
  return result;
}

TensorId add_optimizer(Graph& graph, const std::vector<Parameter>& table, const std::vector<Stepped>& stepped,
                       TensorId norm, TensorId loss, const OptimizerOptions& options, const RankGroup& tensor) {
  graph.phase = Phase::optimizer;
  return StepBuilder(graph, table, stepped, norm, options, tensor).run(loss);
}

}  // namespace llm
