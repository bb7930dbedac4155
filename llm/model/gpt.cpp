#include "llm/model/gpt.h"

#include "llm/graph/autodiff.h"

namespace llm {
namespace {

// One forward pass; `capacity` > 0 makes it the inference form with key-value caches.
class Builder {
 public:
  Builder(Graph& graph, const ModelConfig& config, int64_t capacity = 0) : g_(graph), c_(config), capacity_(capacity) {
    c_.check();
    for (const Parameter& p : parameter_table(c_)) g_.add_tensor(p.name, DType::fp32, p.shape, Role::parameter);
  }

  // tokens (B, T) -> the final norm's output (B, T, C)
  TensorId body(TensorId tokens) {
    const Shape s = g_.shape(tokens);
    if (!capacity_ && s[1] > c_.context)
      fail("a sequence of ", s[1], " tokens is longer than the context of ", c_.context);
    std::vector<TensorId> inputs = {tokens, parameter("token_embedding.weight")};
    if (c_.positions == Positions::learned) {
      inputs.push_back(parameter("position_embedding.weight"));
    } else {
      angles_ = g_.add("rope_angles",
                       {{"tokens", number(s[1])}, {"head_size", number(c_.head_size)}, {"theta", c_.rope_theta}}, {},
                       "rope_angles")[0];
    }
    TensorId x = g_.add("embedding", {}, inputs, "embedding")[0];
    for (int l = 0; l < c_.layers; ++l) {
      g_.layer = l;
      x = block(x, s[0], "layers." + std::to_string(l) + ".");
    }
    g_.layer = -1;
    return norm(x, "final_norm");
  }

  TensorId head(TensorId x) {
    return g_.add("linear", {}, {x, parameter(c_.tied_head ? "token_embedding.weight" : "head.weight")}, "logits")[0];
  }

 private:
  static double number(int64_t value) { return static_cast<double>(value); }

  TensorId block(TensorId x, int64_t batch, const std::string& name) {
    const Attributes heads = {
        {"heads", number(c_.heads)}, {"kv_heads", number(c_.kv_heads)}, {"head_size", number(c_.head_size)}};
    TensorId qkv = linear(norm(x, name + "attention_norm"), name + "qkv");
    if (c_.qk_norm) {
      Attributes a = heads;
      a.set("epsilon", c_.norm_epsilon);
      qkv = g_.add("qk_norm", a, {qkv, parameter(name + "query_norm.weight"), parameter(name + "key_norm.weight")},
                   name + "qk_norm")[0];
    }
    if (c_.positions == Positions::rope) qkv = g_.add("rope", heads, {qkv, angles_}, name + "rope")[0];
    TensorId attended;
    if (capacity_) {
      const Shape cache = {batch, capacity_, c_.kv_heads, c_.head_size};
      const TensorId keys = g_.add_tensor(name + "keys", DType::fp32, cache, Role::state);
      const TensorId values = g_.add_tensor(name + "values", DType::fp32, cache, Role::state);
      attended = g_.add("attention_cached", heads, {qkv, keys, values}, name + "attention")[0];
    } else {
      attended = g_.add("attention", heads, {qkv}, name + "attention")[0];
    }
    x = g_.add("add", {}, {x, linear(attended, name + "attention_out")}, name + "attention_sum")[0];

    const TensorId hidden = linear(norm(x, name + "mlp_norm"), name + "mlp_in");
    const TensorId activated = g_.add(name_of(c_.activation), {}, {hidden}, name + name_of(c_.activation))[0];
    return g_.add("add", {}, {x, linear(activated, name + "mlp_out")}, name + "mlp_sum")[0];
  }

  TensorId norm(TensorId x, const std::string& name) {
    std::vector<TensorId> inputs = {x, parameter(name + ".weight")};
    if (c_.norm == Norm::layernorm) inputs.push_back(parameter(name + ".bias"));
    return g_.add(name_of(c_.norm), {{"epsilon", c_.norm_epsilon}}, inputs, name)[0];
  }

  TensorId linear(TensorId x, const std::string& name) {
    std::vector<TensorId> inputs = {x, parameter(name + ".weight")};
    if (c_.bias) inputs.push_back(parameter(name + ".bias"));
    return g_.add("linear", {}, inputs, name)[0];
  }

  TensorId parameter(const std::string& name) const {
    const TensorId id = g_.find(name);
    if (id == kNone) fail("the parameter table has no ", name);
    return id;
  }

  Graph& g_;
  const ModelConfig& c_;
  int64_t capacity_;
  TensorId angles_ = kNone;
};

TensorId add_input(Graph& g, const char* name, DType dtype, int64_t batch, int64_t tokens) {
  return g.add_tensor(name, dtype, {batch, tokens}, Role::input);
}

}  // namespace

TrainingGraph build_training_graph(const ModelConfig& config, int64_t batch, int64_t tokens,
                                   const OptimizerOptions& options, int threads) {
  TrainingGraph t;
  Graph& g = t.graph;
  g.threads = threads;
  Builder builder(g, config);
  t.tokens = add_input(g, "tokens", DType::int32, batch, tokens);
  t.targets = add_input(g, "targets", DType::int32, batch, tokens);
  t.loss_weights = add_input(g, "loss_weights", DType::fp32, batch, tokens);
  t.losses = g.add("cross_entropy", {}, {builder.head(builder.body(t.tokens)), t.targets}, "losses")[0];
  const Gradients gradients = differentiate(g, {{t.losses, t.loss_weights}});

  g.phase = Phase::optimizer;
  std::vector<TensorId> all;
  const std::vector<Parameter> table = parameter_table(config);
  for (const Parameter& p : table) all.push_back(gradients.of(g.find(p.name)));
  t.gradient_norm = g.add("gradient_norm", {}, all, "gradient_norm")[0];
  for (size_t i = 0; i < table.size(); ++i) {
    const Parameter& p = table[i];
    const TensorId first = g.add_tensor(p.name + ".first_moment", DType::fp32, p.shape, Role::state);
    const TensorId second = g.add_tensor(p.name + ".second_moment", DType::fp32, p.shape, Role::state);
    g.add("adamw",
          {{"beta1", options.beta1},
           {"beta2", options.beta2},
           {"epsilon", options.epsilon},
           {"weight_decay", p.decay ? options.weight_decay : 0.0},
           {"grad_clip", options.grad_clip},
           {"learning_rate_scale", 1.0}},
          {g.find(p.name), all[i], first, second, t.gradient_norm}, p.name + ".step");
  }
  return t;
}

EvaluationGraph build_evaluation_graph(const ModelConfig& config, int64_t batch, int64_t tokens, int threads) {
  EvaluationGraph e;
  e.graph.threads = threads;
  Builder builder(e.graph, config);
  e.tokens = add_input(e.graph, "tokens", DType::int32, batch, tokens);
  e.targets = add_input(e.graph, "targets", DType::int32, batch, tokens);
  e.losses = e.graph.add("cross_entropy", {}, {builder.head(builder.body(e.tokens)), e.targets}, "losses")[0];
  return e;
}

GenerationGraph build_generation_graph(const ModelConfig& config, int64_t batch, int64_t tokens, int64_t capacity,
                                       int threads) {
  GenerationGraph n;
  n.graph.threads = threads;
  Builder builder(n.graph, config, capacity);
  n.tokens = add_input(n.graph, "tokens", DType::int32, batch, tokens);
  const TensorId last = n.graph.add("select_last", {}, {builder.body(n.tokens)}, "last")[0];
  n.logits = builder.head(last);
  return n;
}

double training_flops_per_token(const ModelConfig& c, int64_t tokens) {
  double weights = static_cast<double>(c.vocabulary * c.channels);  // the head
  for (const Parameter& p : parameter_table(c))
    if (p.group == LearningRateGroup::matrix && p.shape.rank() == 2) weights += static_cast<double>(p.shape.elements());
  const double attention = static_cast<double>(c.layers * c.heads * c.head_size) * static_cast<double>(tokens + 1) / 2;
  return 6 * weights + 12 * attention;
}

}  // namespace llm
