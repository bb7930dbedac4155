#include "llm/model/optimizer.h"

#include <algorithm>
#include <array>
#include <tuple>

#include "llm/base/error.h"

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
constexpr double kGuardAfter = 50;   // steps; before, too little is known of loss and norm
constexpr double kUpdateSize = 0.2;  // root mean square of an update's elements, in learning rates; about that of AdamW

template <class T>
void add_if_new(std::vector<T>& values, const T& value) {
  if (std::find(values.begin(), values.end(), value) == values.end()) values.push_back(value);
}

class StepBuilder {
 public:
  StepBuilder(Graph& graph, const std::vector<Parameter>& table, const std::vector<Stepped>& stepped, TensorId norm,
              const OptimizerOptions& options)
      : g_(graph),
        table_(table),
        stepped_(stepped),
        o_(options),
        bf16_(graph.dtype(graph.find(table[0].name)) == DType::bf16),
        norm_(norm) {}

  TensorId run(TensorId loss) {
    if (o_.guard_deviations > 0) {
      const TensorId statistics = g_.add_tensor(kGuardState, DType::fp32, {kGuardStatistics}, Role::state);
      norm_ = g_.add("step_guard", {{"deviations", o_.guard_deviations}, {"after", kGuardAfter}},
                     {norm_, loss, statistics}, "guarded_norm")[0];
    }
    adamw();
    // Muon takes the matrices of one block at a time: few nodes, and little memory between them.
    for (size_t i = 0; i < table_.size();) {
      std::vector<size_t> matrices;
      const int layer = table_[i].layer;
      for (; i < table_.size() && table_[i].layer == layer; ++i)
        if (takes_muon(table_[i], o_.kind) && is_mine(i)) matrices.push_back(i);
      if (!matrices.empty()) muon(matrices, concat("layers.", layer, ".step"));
    }
    return norm_;
  }

 private:
  bool is_mine(size_t i) const { return stepped_[i].parameter != kNone; }
  TensorId state(size_t i, const std::string& name) {
    return g_.add_tensor(name, DType::fp32, stepped_[i].shape, Role::state);
  }
  TensorId master(size_t i) { return bf16_ ? state(i, master_of(table_[i].name)) : kNone; }

  // One node for all parameters with the same settings.
  void adamw() {
    using Settings = std::tuple<bool, double, double>;
    const auto settings_of = [](const Parameter& p) { return Settings{p.decay, p.adamw_rate, p.epsilon}; };
    std::vector<Settings> all;
    for (const Parameter& p : table_)
      if (!takes_muon(p, o_.kind)) add_if_new(all, settings_of(p));
    for (const Settings& settings : all) {
      const auto [decay, rate, epsilon] = settings;
      std::vector<TensorId> inputs = {norm_};
      std::vector<int64_t> firsts;
      for (size_t i = 0; i < table_.size(); ++i) {
        const Parameter& p = table_[i];
        if (settings_of(p) != settings || takes_muon(p, o_.kind) || !is_mine(i)) continue;
        inputs.insert(inputs.end(), {stepped_[i].parameter, stepped_[i].gradient, state(i, p.name + ".first_moment"),
                                     state(i, p.name + ".second_moment"), master(i)});
        firsts.push_back(stepped_[i].first);
      }
      if (inputs.size() == 1) continue;
      g_.add("adamw",
             {{"beta1", o_.beta1},
              {"beta2", o_.beta2},
              {"epsilon", o_.epsilon * epsilon},
              {"weight_decay", decay ? o_.weight_decay / rate : 0.0},
              {"grad_clip", o_.grad_clip},
              {"learning_rate_scale", rate},
              {"firsts", firsts}},
             inputs, decay ? "step.decayed" : "step.others");
    }
  }

  void muon(const std::vector<size_t>& matrices, const std::string& name) {
    std::vector<TensorId> inputs = {norm_};
    std::vector<int64_t> all_rows;  // rows of each part
    std::vector<size_t> parts;      // how many each matrix has
    for (size_t i : matrices) {
      const Parameter& p = table_[i];
      inputs.insert(inputs.end(), {stepped_[i].gradient, state(i, p.name + ".momentum")});
      const std::vector<int64_t> rows = p.joined.empty() ? std::vector{p.shape[0]} : p.joined;
      all_rows.insert(all_rows.end(), rows.begin(), rows.end());
      parts.push_back(rows.size());
    }
    const Attributes attributes = {{"momentum", o_.momentum},
                                   {"grad_clip", o_.grad_clip},
                                   {"margin", kMargin},
                                   {"bf16", bf16_},
                                   {"rows", all_rows}};
    const std::vector<TensorId> outputs = g_.add("muon_momentum", attributes, inputs, name);
    const std::vector<TensorId> x =
        orthogonal({outputs.begin() + static_cast<std::ptrdiff_t>(matrices.size()), outputs.end()}, name);

    std::vector<double> rates;
    for (size_t i : matrices) add_if_new(rates, table_[i].muon_rate);
    for (const double rate : rates) {
      std::vector<TensorId> applied = {norm_};
      auto next = x.begin();
      for (size_t m = 0; m < matrices.size(); next += static_cast<std::ptrdiff_t>(parts[m++])) {
        if (table_[matrices[m]].muon_rate != rate) continue;
        applied.insert(applied.end(), {stepped_[matrices[m]].parameter, master(matrices[m])});
        applied.insert(applied.end(), next, next + static_cast<std::ptrdiff_t>(parts[m]));
      }
      g_.add("muon_apply",
             {{"weight_decay", o_.weight_decay / rate}, {"rms", kUpdateSize}, {"learning_rate_scale", rate}}, applied,
             name + ".apply");
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
                       TensorId norm, TensorId loss, const OptimizerOptions& options) {
  graph.phase = Phase::optimizer;
  return StepBuilder(graph, table, stepped, norm, options).run(loss);
}

}  // namespace llm
