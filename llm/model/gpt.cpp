#include "llm/model/gpt.h"

#include "llm/base/rounding.h"
#include "llm/graph/autodiff.h"
#include "llm/model/expert_ranks.h"
#include "llm/model/shard.h"
#include "llm/model/split_context.h"
#include "llm/ops/rope_frequency.h"

namespace llm {
namespace {

const Attributes kRowInvariant = {{"row_invariant", true}};

// One forward pass; body_paged() is its form for inference.
class ForwardBuilder {
 public:
  ForwardBuilder(Graph& graph, const ModelConfig& config, DType dtype, std::optional<DType> weights = {})
      : g_(graph), c_(config), dtype_(dtype), weights_(weights) {
    c_.check();
    add_parameters(g_, c_, dtype_, weights);
  }

  // From body() on the routers of experts have statistics and, where a weight is not 0, losses.
  void watch_routers(double balance_weight, double z_weight) {
    watches_routers_ = true, balance_weight_ = balance_weight, z_weight_ = z_weight;
  }

  // tokens (B, T) -> the final norm's output (B, T, C)
  TensorId body(TensorId tokens, int32_t end_of_text = -1, double dropout = 0) {
    const Shape s = g_.shape(tokens);
    dropout_ = dropout;
    if (end_of_text >= 0)
      starts_ = g_.add("document_starts", {{"end_of_text", end_of_text}}, {tokens}, "document_starts")[0];
    if (s[1] > c_.context) fail("a sequence of ", s[1], " tokens is longer than the context of ", c_.context);
    return norm(blocks(tokens), "final_norm");
  }

  // rows (3, R), or (4, R) where some may be far -> the output of the last block (1, R, C)
  TensorId body_paged(TensorId rows, const PagedMemory& memory) {
    const int64_t R = g_.shape(rows)[1];
    paged_ = &memory;
    const TensorId tokens = g_.add_view("tokens", rows, {1, R}, 0);
    positions_ = g_.add_view("positions", rows, {1, R}, R);
    slots_ = g_.add_view("slots", rows, {1, R}, 2 * R);
    if (c_.rope_kind == RopeKind::longrope) are_far_ = g_.add_view("are_far", rows, {1, R}, 3 * R);
    tables_ = g_.add_tensor("block_tables", DType::int32, {memory.sequences, ceil_div(c_.context, memory.block)},
                            Role::state);
    return blocks(tokens);
  }

  // The last block's output (1, R, C) -> logits (1, R, V), in fp32 where they have a soft-cap
  TensorId head_paged(TensorId x) {
    TensorId logits = head(norm(x, "final_norm"), kRowInvariant);
    if (c_.logit_softcap <= 0) return logits;
    if (dtype_ != DType::fp32) logits = g_.add("cast", {{"bf16", false}}, {logits}, "logits.fp32")[0];
    return g_.add("softcap", {{"cap", c_.logit_softcap}}, {logits}, "logits.capped")[0];
  }

  // x (B, T, C) -> logits (B, T, V), before the soft-cap
  TensorId head(TensorId x, const Attributes& attributes = {}) {
    std::vector<TensorId> inputs = {x, parameter(head_weight(c_))};
    if (c_.head_bias) inputs.push_back(parameter("head.bias"));
    return g_.add("linear", attributes, inputs, "logits")[0];
  }

  // x (B, T, C), targets (B, T) -> losses (B, T)
  TensorId losses(TensorId x, TensorId targets, double z_loss) {
    Attributes a;
    if (c_.logit_softcap > 0) a.set("softcap", c_.logit_softcap);
    if (z_loss > 0) a.set("z_loss", z_loss);
    return g_.add("cross_entropy", a, {head(x), targets}, "losses")[0];
  }

 private:
  // tokens (B, T) -> the output of the last block (B, T, C)
  TensorId blocks(TensorId tokens) {
    const Shape s = g_.shape(tokens);
    std::vector<TensorId> inputs = {tokens, parameter("token_embedding.weight")};
    if (c_.positions == Positions::learned) {
      inputs.push_back(parameter("position_embedding.weight"));
      if (paged_) inputs.push_back(positions_);
    } else {
      angles_ = rope_angles(s[1], c_.rope_theta, c_.is_stretched(), "rope_angles");
      if (c_.global_every) local_angles_ = rope_angles(s[1], c_.rope_local_theta, false, "rope_local_angles");
    }
    const bool widens = weights_ && dtype_ == DType::fp32;
    TensorId x = g_.add("embedding", widens ? Attributes{{"widen", true}} : Attributes{}, inputs, "embedding")[0];
    if (c_.embedding_scale != 1) x = g_.add("scale", {{"factor", c_.embedding_scale}}, {x}, "embedding_scaled")[0];
    x = dropped(x, "embedding_dropout");
    for (int l = 0; l < c_.layers; ++l) {
      g_.layer = l;
      x = block(x, "layers." + std::to_string(l) + ".");
    }
    g_.layer = -1;
    return x;
  }

  // The angles (T, R) of T tokens, for the channels of a head that are turned.
  TensorId rope_angles(int64_t tokens, double theta, bool stretched, const char* name) {
    Attributes a = {{"tokens", tokens}, {"head_size", c_.rotary_width()}, {"theta", theta}};
    std::vector<TensorId> inputs;
    if (paged_) inputs.push_back(positions_);
    if (stretched && c_.rope_kind == RopeKind::longrope) {
      a.set("divisors", c_.is_far(tokens) && !paged_ ? c_.rope_far : c_.rope_near);
      if (paged_) a.set("long_divisors", c_.rope_far), inputs.push_back(are_far_);
    } else if (stretched && c_.rope_kind != RopeKind::dynamic) {
      static_assert(static_cast<int>(RopeStretch::all) == static_cast<int>(RopeKind::linear));
      static_assert(static_cast<int>(RopeStretch::turns) == static_cast<int>(RopeKind::yarn));
      a.set("stretch", static_cast<int64_t>(c_.rope_kind));
      a.set("factor", c_.rope_factor);
      a.set("low", c_.rope_low);
      a.set("high", c_.rope_high);
      a.set("original", c_.rope_original);
    }
    if (c_.rope_magnitude != 1) a.set("magnitude", c_.rope_magnitude);
    return g_.add("rope_angles", a, inputs, name)[0];
  }

  TensorId block(TensorId x, const std::string& name) {
    const Attributes heads = {{"heads", c_.heads}, {"kv_heads", c_.kv_heads}, {"head_size", c_.head_size}};
    const TensorId first_normal = norm(x, name + "attention_norm");
    TensorId qkv = linear(first_normal, name + "qkv");
    if (c_.qk_norm) {
      Attributes a = heads;
      a.set("epsilon", c_.norm_epsilon);
      qkv = g_.add("qk_norm", a, {qkv, parameter(name + "query_norm.weight"), parameter(name + "key_norm.weight")},
                   name + "qk_norm")[0];
    }
    if (c_.positions == Positions::rope) {
      Attributes a = heads;
      if (c_.rotary_width() != c_.head_size) a.set("rotary_size", c_.rotary_size);
      qkv = g_.add("rope", a, {qkv, c_.is_local(g_.layer) ? local_angles_ : angles_}, name + "rope")[0];
    }
    TensorId attended;
    if (paged_) {
      const Shape shape = {paged_->blocks, c_.kv_heads, paged_->block, c_.head_size};
      const DType type = paged_->type.value_or(dtype_);
      const TensorId keys = g_.add_tensor(name + "key_blocks", type, shape, Role::state);
      const TensorId values = g_.add_tensor(name + "value_blocks", type, shape, Role::state);
      attended =
          g_.add("attention_paged", heads, {qkv, keys, values, positions_, slots_, tables_}, name + "attention")[0];
    } else {
      std::vector<TensorId> inputs = {qkv};
      if (starts_ != kNone) inputs.push_back(starts_);
      attended = g_.add("attention", heads, inputs, name + "attention")[0];
    }
    TensorId branch = linear(attended, name + "attention_out");
    if (c_.post_norms) branch = norm(branch, name + "attention_post_norm");
    x = g_.add("add", {}, {x, dropped(branch, name + "attention_dropout")}, name + "attention_sum")[0];

    const TensorId normal = c_.parallel_block ? first_normal : norm(x, name + "mlp_norm");
    branch = c_.experts ? experts(normal, name) : mlp(normal, name + "mlp", name);
    if (c_.post_norms) branch = norm(branch, name + "mlp_post_norm");
    return g_.add("add", {}, {x, dropped(branch, name + "mlp_dropout")}, name + "mlp_sum")[0];
  }

  TensorId mlp(TensorId x, const std::string& name, const std::string& name_of_activation) {
    const TensorId hidden = linear(x, name + "_in");
    const TensorId activated =
        g_.add(name_of(c_.activation), {}, {hidden}, name_of_activation + name_of(c_.activation))[0];
    return linear(activated, name + "_out");
  }

  // x (B, T, C) -> (B, T, C). Each token's row goes to its K experts and comes back; in between lie the rows of all
  // tokens (1, B T K, C), those of each expert together.
  TensorId experts(TensorId x, const std::string& name) {
    const TensorId logits = linear(x, name + "router");
    std::vector<TensorId> scored = {logits};
    if (c_.router_bias) scored.push_back(parameter(name + "router_bias"));
    const auto chosen = g_.add("route", {{"chosen", c_.experts_per_token}}, scored, name + "route");
    const auto sorted = g_.add("expert_order", {{"experts", c_.experts}}, {chosen[0]}, name + "expert_order");
    const TensorId weights = chosen[1], order = sorted[0], place = sorted[1], counts = sorted[2];
    if (watches_routers_) watch_router(logits, counts);

    const TensorId rows = g_.add("expert_rows", {}, {x, order, place}, name + "expert_rows")[0];
    const auto grouped = [&](TensorId from, const std::string& to) {
      return g_.add("grouped_linear", paged_ ? kRowInvariant : Attributes{}, {from, parameter(to + ".weight"), counts},
                    to)[0];
    };
    const TensorId hidden = grouped(rows, name + "experts_in");
    const TensorId activated = g_.add(name_of(c_.activation), {}, {hidden}, name + name_of(c_.activation))[0];
    const TensorId out = grouped(activated, name + "experts_out");
    const TensorId sum = g_.add("expert_sum", {}, {out, weights, order, place}, name + "expert_sum")[0];
    if (!c_.shared_hidden) return sum;
    return g_.add("add", {}, {sum, mlp(x, name + "shared", name + "shared_")}, name + "all_experts")[0];
  }

  void watch_router(TensorId logits, TensorId counts) {
    Attributes a = {{"chosen", c_.experts_per_token}};
    g_.add("router_statistics", a, {logits, counts}, router_statistics_of(g_.layer));
    if (balance_weight_ <= 0 && z_weight_ <= 0) return;
    a.set("balance_weight", balance_weight_);
    a.set("z_weight", z_weight_);
    g_.add("router_loss", a, {logits, counts}, router_loss_of(g_.layer));
  }

  // Every dropout of the graph has a stream of its own, and so its own mask.
  TensorId dropped(TensorId x, const std::string& name) {
    if (dropout_ <= 0) return x;
    return g_.add("dropout", {{"probability", dropout_}, {"stream", dropouts_++}}, {x}, name)[0];
  }

  TensorId norm(TensorId x, const std::string& name) {
    std::vector<TensorId> inputs = {x, parameter(name + ".weight")};
    if (c_.norm == Norm::layernorm) inputs.push_back(parameter(name + ".bias"));
    return g_.add(name_of(c_.norm), {{"epsilon", c_.norm_epsilon}}, inputs, name)[0];
  }

  TensorId linear(TensorId x, const std::string& name) {
    std::vector<TensorId> inputs = {x, parameter(name + ".weight")};
    if (const TensorId bias = g_.find(name + ".bias"); bias != kNone) inputs.push_back(bias);
    return g_.add("linear", paged_ ? kRowInvariant : Attributes{}, inputs, name)[0];
  }

  TensorId parameter(const std::string& name) const {
    const TensorId id = g_.find(name);
    if (id == kNone) fail("the parameter table has no ", name);
    return id;
  }

  Graph& g_;
  const ModelConfig& c_;
  DType dtype_;
  std::optional<DType> weights_;  // the type of the matrices of weights, where they are packed panels
  TensorId angles_ = kNone, local_angles_ = kNone, starts_ = kNone;
  const PagedMemory* paged_ = nullptr;
  TensorId positions_ = kNone, slots_ = kNone, are_far_ = kNone, tables_ = kNone;
  double dropout_ = 0;
  int64_t dropouts_ = 0;
  bool watches_routers_ = false;
  double balance_weight_ = 0, z_weight_ = 0;
};

TensorId add_input(Graph& g, const char* name, DType dtype, int64_t batch, int64_t tokens) {
  return g.add_tensor(name, dtype, {batch, tokens}, Role::input);
}

}  // namespace

std::string router_statistics_of(int64_t layer) { return concat("layers.", layer, ".router_statistics"); }
std::string router_loss_of(int64_t layer) { return concat("layers.", layer, ".router_loss"); }

Graph build_forward(const ModelConfig& config, int64_t batch, int64_t tokens, DType dtype, const RecipeOptions& recipe,
                    const DataParallel& parallel) {
  Graph g;
  ForwardBuilder builder(g, config, dtype);
  builder.watch_routers(recipe.balance_weight, recipe.router_z_loss);
  const Mesh& mesh = parallel.mesh;
  const int64_t sequences = batch / mesh.expert;
  const TensorId ids = add_input(g, "tokens", DType::int32, sequences, tokens);
  const TensorId targets = add_input(g, "targets", DType::int32, sequences, tokens);
  const TensorId weights = add_input(g, "loss_weights", DType::fp32, sequences, tokens);
  const TensorId losses = builder.losses(builder.body(ids, recipe.end_of_text, recipe.dropout), targets, recipe.z_loss);
  g.add("mean_loss", {}, {losses, weights}, "loss");
  const auto sliced = [&](const Mesh& by) { return sliced_table(parameter_table(config, recipe.parametrization), by); };
  if (mesh.context > 1)
    g = split_context(g, mesh.context_group(parallel.run_rank), parallel.context_exchange, kPartChannels);
  if (mesh.tensor > 1) {
    Mesh all_experts = mesh;
    all_experts.expert = 1;
    g = shard(g, sliced(all_experts), mesh.tensor_group(parallel.run_rank), std::max(g.channels, kPartChannels));
  }
  if (config.experts && mesh.sharing() > 1)
    g = share_experts(g, sliced(mesh), mesh, parallel.run_rank, std::max(g.channels, kPartChannels));
  return g;
}

void add_step_end(TrainingGraph& t, const std::vector<Parameter>& table, const std::vector<Parameter>& all,
                  const OptimizerOptions& options, const DataParallel& parallel) {
  const Partition partition = partition_of(table, options.kind, parallel.ranks);
  const Reduced reduced = add_reduction(t.graph, table, t.gradients, t.loss, parallel, partition, all);
  t.gradient_norm = reduced.norm;
  t.guarded_norm = add_optimizer(t.graph, table, reduced.stepped, reduced.norm, reduced.loss, options,
                                 parallel.mesh.tensor_group(parallel.run_rank));
  add_parameter_gather(t.graph, table, parallel, partition);
}

TrainingGraph build_training_graph(const ModelConfig& config, int64_t batch, int64_t tokens,
                                   const OptimizerOptions& options, DType dtype, const RecipeOptions& recipe,
                                   const DataParallel& parallel) {
  TrainingGraph t;
  Graph& g = t.graph = build_forward(config, batch, tokens, dtype, recipe, parallel);
  const std::vector<Parameter> table = sliced_table(parameter_table(config, recipe.parametrization), parallel.mesh);
  t.tokens = g.find("tokens"), t.targets = g.find("targets"), t.loss_weights = g.find("loss_weights");
  t.losses = g.find("losses"), t.loss = g.find("loss");
  const TensorId weights = g.nodes.back().inputs[1];
  std::vector<std::pair<TensorId, TensorId>> seeds = {{t.losses, weights}};
  for (int64_t l = 0; l < config.layers && config.experts; ++l) {
    t.router_statistics.push_back(g.find(router_statistics_of(l)));
    if (const TensorId losses = g.find(router_loss_of(l)); losses != kNone) seeds.emplace_back(losses, weights);
  }
  const Gradients gradients = differentiate(g, seeds);

  for (const Parameter& p : table) t.gradients.push_back(gradients.of(g.find(p.name)));
  if (config.tied_head && parallel.micro_steps > 1)
    for (size_t i = 0; i < table.size(); ++i)
      if (table[i].name == head_weight(config)) t.gradients[i] = separate_embedding_gradient(g, t.gradients[i]);
  add_step_end(t, table, table, options, parallel);
  return t;
}

EvaluationGraph build_evaluation_graph(const ModelConfig& config, int64_t batch, int64_t tokens, DType dtype,
                                       int32_t end_of_text, std::optional<DType> weights) {
  EvaluationGraph e;
  ForwardBuilder builder(e.graph, config, dtype, weights);
  e.tokens = add_input(e.graph, "tokens", DType::int32, batch, tokens);
  e.targets = add_input(e.graph, "targets", DType::int32, batch, tokens);
  e.losses = builder.losses(builder.body(e.tokens, end_of_text), e.targets, 0);
  return e;
}

PagedGraph build_paged_graph(const ModelConfig& config, int64_t rows, const PagedMemory& memory, DType dtype,
                             bool with_head, std::optional<DType> weights) {
  PagedGraph p;
  ForwardBuilder builder(p.graph, config, dtype, weights);
  p.rows = add_input(p.graph, "rows", DType::int32, config.rope_kind == RopeKind::longrope ? 4 : 3, rows);
  p.hidden = builder.body_paged(p.rows, memory);
  if (with_head) p.logits = builder.head_paged(p.hidden);
  return p;
}

HeadGraph build_head_graph(const ModelConfig& config, int64_t rows, DType dtype, bool sample, int64_t limit,
                           std::optional<DType> weights) {
  HeadGraph h;
  ForwardBuilder builder(h.graph, config, dtype, weights);
  h.hidden = h.graph.add_tensor("hidden", dtype, {1, rows, config.channels}, Role::input);
  h.logits = builder.head_paged(h.hidden);
  if (!sample) return h;
  h.sampling = h.graph.add_tensor("sampling", DType::int32, {rows, 12}, Role::input);
  h.draws = h.graph.add("sample", {{"limit", limit}}, {h.logits, h.sampling}, "draws")[0];
  return h;
}

double training_flops_per_token(const ModelConfig& c, int64_t tokens) {
  double weights = static_cast<double>(c.vocabulary * c.channels);  // the head
  for (const Parameter& p : parameter_table(c))
    if ((p.group == LearningRateGroup::matrix && p.shape.rank() == 2) || p.group == LearningRateGroup::router)
      weights += static_cast<double>(active_elements(c, p));
  const double attention = static_cast<double>(c.layers * c.heads * c.head_size) * static_cast<double>(tokens + 1) / 2;
  return 6 * weights + 12 * attention;
}

}  // namespace llm
