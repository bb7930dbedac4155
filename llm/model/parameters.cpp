#include "llm/model/parameters.h"

#include <algorithm>
#include <cmath>

#include "llm/base/random.h"

namespace llm {
namespace {

class Table {
 public:
  Table(const ModelConfig& config, const Parametrization& parametrization)
      : c_(config), how_(parametrization), type_(model_type_of(config)), gpt2_names_(type_ == "gpt2") {
    if (!how_.complete_p) return;
    wide_ = static_cast<double>(c_.channels) / kBaseChannels;
    deep_ = static_cast<double>(c_.layers) / kBaseLayers;
    embedding_rate_ = kEmbeddingRate, position_rate_ = kPositionRate, head_rate_ = kHeadRate;
  }

  std::vector<Parameter> make() {
    // An embedding that is also the head's matrix has the head's size and rate: its logits are sums over all channels.
    const bool as_input = how_.complete_p && !c_.tied_head;
    const double std = c_.positions == Positions::learned ? 0.02 : inverse_root(as_input ? kBaseChannels : c_.channels);
    matrix("token_embedding.weight", {c_.vocabulary, c_.channels}, std, LearningRateGroup::embedding, 0,
           {gpt2_names_ ? "transformer.wte.weight" : "model.embed_tokens.weight"});
    if (c_.tied_head)
      multiply(head_rate_ / wide_, 1);
    else
      multiply(embedding_rate_, 1 / wide_);
    if (c_.positions == Positions::learned) {
      matrix("position_embedding.weight", {c_.context, c_.channels}, 0.02, LearningRateGroup::embedding, -1,
             {gpt2_names_ ? "transformer.wpe.weight" : "model.embed_positions.weight"});
      multiply(position_rate_, 1 / wide_);
    }
    for (int l = 0; l < c_.layers; ++l) block(l);
    layer_ = -1;
    norm("final_norm", c_.channels,
         gpt2_names_      ? "transformer.ln_f"
         : type_ == "phi" ? "model.final_layernorm"
                          : "model.norm");
    if (!c_.tied_head) {
      matrix("head.weight", {c_.vocabulary, c_.channels}, inverse_root(c_.channels) / std::sqrt(wide_),
             LearningRateGroup::head, 0, {"lm_head.weight"});
      multiply(head_rate_ / wide_, 1, 1 / wide_);
      if (how_.zero_projections) table_.back().init = Parameter::Init::zeros, table_.back().init_std = 0;
    }
    if (c_.head_bias) vector("head.bias", c_.vocabulary, Parameter::Init::zeros, "lm_head.bias");
    return std::move(table_);
  }

 private:
  void block(int l) {
    layer_ = l;
    const std::string name = "layers." + std::to_string(l) + ".";
    const std::string file = (gpt2_names_ ? "transformer.h." : "model.layers.") + std::to_string(l) + ".";
    // Weights have a standard deviation of 1 / sqrt(fan-in), in GPT-2's architecture that of gpt2_std(). The
    // projections into the residual stream are scaled by 1 / sqrt(2 L) (Radford et al. 2019), with CompleteP by 1 / L.
    const double residual =
        how_.complete_p ? inverse_root(2 * kBaseLayers) / deep_ : 1.0 / std::sqrt(2.0 * static_cast<double>(c_.layers));
    const auto std = [](int64_t fan_in) { return inverse_root(fan_in); };
    const int64_t q = c_.query_width(), kv = c_.kv_heads * c_.head_size, c = c_.channels;

    norm(name + "attention_norm", c, file + (gpt2_names_ ? "ln_1" : "input_layernorm"));
    if (gpt2_names_) {
      linear(name + "qkv", {c_.qkv_width(), c}, gpt2_std(c), 0, {{file + "attn.c_attn", c_.qkv_width()}}, {q, kv, kv});
    } else if (type_ == "phi3") {
      linear(name + "qkv", {c_.qkv_width(), c}, std(c), 0, {{file + "self_attn.qkv_proj", c_.qkv_width()}},
             {q, kv, kv});
    } else {
      const std::string attention = file + "self_attn.";
      linear(name + "qkv", {c_.qkv_width(), c}, std(c), 0,
             {{attention + "q_proj", q}, {attention + "k_proj", kv}, {attention + "v_proj", kv}}, {q, kv, kv});
    }
    for (Parameter& p : table_)
      if (p.layer == layer_ && p.name.starts_with(name + "qkv.")) p.heads = {c_.heads, c_.kv_heads, c_.kv_heads};
    if (c_.qk_norm) {
      vector(name + "query_norm.weight", c_.head_size, Parameter::Init::ones, file + "self_attn.q_norm.weight");
      vector(name + "key_norm.weight", c_.head_size, Parameter::Init::ones, file + "self_attn.k_norm.weight");
    }
    linear(name + "attention_out", {c, q}, (gpt2_names_ ? gpt2_std(q) : std(q)) * residual, 1,
           {{file + (gpt2_names_      ? "attn.c_proj"
                     : type_ == "phi" ? "self_attn.dense"
                                      : "self_attn.o_proj"),
             c}},
           {}, true);
    if (c_.post_norms) norm(name + "attention_post_norm", c, file + "post_attention_layernorm");
    if (!c_.parallel_block)
      norm(name + "mlp_norm", c,
           file + (gpt2_names_     ? "ln_2"
                   : c_.post_norms ? "pre_feedforward_layernorm"
                                   : "post_attention_layernorm"));
    if (c_.experts)
      experts(name, file, residual);
    else
      mlp(name, file, residual);
    if (c_.post_norms) norm(name + "mlp_post_norm", c, file + "post_feedforward_layernorm");
  }

  void mlp(const std::string& name, const std::string& file, double residual) {
    const auto std = [&](int64_t fan_in) { return gpt2_names_ ? gpt2_std(fan_in) : inverse_root(fan_in); };
    const bool phi = type_ == "phi";
    const int64_t f = c_.hidden, c = c_.channels;
    if (is_gated(c_.activation)) {
      gated_in(name + "mlp_in", file + "mlp.", f);
    } else {
      const char* const in = gpt2_names_ ? "mlp.c_fc" : phi ? "mlp.fc1" : "mlp.up_proj";
      linear(name + "mlp_in", {f, c}, std(c), 0, {{file + in, f}});
    }
    const char* const out = gpt2_names_ ? "mlp.c_proj" : phi ? "mlp.fc2" : "mlp.down_proj";
    linear(name + "mlp_out", {c, f}, std(f) * residual, 1, {{file + out, c}}, {}, true);
  }

  // A mixture of experts. Their matrices lie one behind another, as the grouped product takes them. To Muon and in the
  // files each is a matrix of its own.
  void experts(const std::string& name, const std::string& file, double residual) {
    const int64_t E = c_.experts, f = c_.hidden, c = c_.channels;
    const bool mixtral = model_type_of(c_) == "mixtral";
    const std::string mlp = file + (mixtral ? "block_sparse_moe." : "mlp.");
    matrix(name + "router.weight", {E, c}, inverse_root(c) / std::sqrt(wide_), LearningRateGroup::router, -1,
           {mlp + "gate.weight"});
    multiply(1 / wide_, 1 / (wide_ * deep_));
    if (c_.router_bias) {
      vector(name + "router_bias", E, Parameter::Init::zeros, mlp + "gate.e_score_correction_bias");
      table_.back().group = LearningRateGroup::balance;
    }
    std::vector<Part> in, out;
    for (int64_t e = 0; e < E; ++e) {
      const std::string expert = mlp + "experts." + std::to_string(e) + ".";
      in.push_back({expert + (mixtral ? "w1" : "gate_proj"), f});
      in.push_back({expert + (mixtral ? "w3" : "up_proj"), f});
      out.push_back({expert + (mixtral ? "w2" : "down_proj"), c});
    }
    linear(name + "experts_in", {E * 2 * f, c}, inverse_root(c), 0, in, std::vector(static_cast<size_t>(2 * E), f));
    table_.back().experts = E;
    linear(name + "experts_out", {E * c, f}, inverse_root(f) * residual, 1, out, std::vector(static_cast<size_t>(E), c),
           true);
    table_.back().experts = E;
    if (!c_.shared_hidden) return;
    const int64_t shared = c_.shared_hidden;
    gated_in(name + "shared_in", mlp + "shared_experts.", shared);
    linear(name + "shared_out", {c, shared}, inverse_root(shared) * residual, 1,
           {{mlp + "shared_experts.down_proj", c}}, {}, true);
  }

  // The gate's and the up projection of a gated MLP, to a width of f.
  void gated_in(const std::string& name, const std::string& file, int64_t f) {
    std::vector<Part> parts = {{file + "gate_proj", f}, {file + "up_proj", f}};
    if (type_ == "phi3") parts = {{file + "gate_up_proj", 2 * f}};
    linear(name, {2 * f, c_.channels}, inverse_root(c_.channels), 0, parts, {f, f});
  }

  static double inverse_root(int64_t n) { return 1 / std::sqrt(static_cast<double>(n)); }

  // 0.02 at GPT-2's widths (Radford et al. 2019). Narrower models, whose signal would fade, and CompleteP take 0.5 /
  // sqrt(fan-in), which is about 0.02 at 768.
  double gpt2_std(int64_t fan_in) const {
    return fan_in >= 768 && !how_.complete_p ? 0.02 : 0.5 * inverse_root(fan_in);
  }

  // Sets the multipliers of the parameter that was added last.
  void multiply(double rate, double epsilon, double forward = 1) {
    Parameter& p = table_.back();
    p.adamw_rate = p.muon_rate = rate, p.epsilon = epsilon, p.forward = forward;
  }

  struct Part {
    std::string file;
    int64_t rows;
  };

  void matrix(std::string name, Shape shape, double std, LearningRateGroup group, int shard_axis,
              std::vector<std::string> file) {
    Parameter p{
        .name = std::move(name), .shape = shape, .init = Parameter::Init::normal, .init_std = std, .decay = true};
    p.group = group, p.shard_axis = shard_axis, p.layer = layer_;
    p.file_parts = {FilePart{file[0], 0, shape[0], false, shape}};
    table_.push_back(std::move(p));
  }

  void linear(const std::string& name, Shape shape, double std, int shard_axis, const std::vector<Part>& parts,
              std::vector<int64_t> joined = {}, bool residual = false) {
    matrix(name + ".weight", shape, std, LearningRateGroup::matrix, shard_axis, {name});
    table_.back().residual = residual;
    table_.back().file_parts = split(parts, ".weight", shape[1]);
    // Each branch is multiplied by 1 / deep_, and so are its gradients, but for those of its last product, into which
    // the factor is folded.
    const double branch = residual ? 1 / deep_ : 1, epsilon = 1 / (residual ? wide_ : wide_ * deep_);
    const int64_t rows = joined.empty() ? shape[0] : joined[0], columns = shape[1];
    multiply(branch * (how_.complete_p ? base_width(name) / static_cast<double>(columns) : 1), epsilon, branch);
    if (how_.complete_p) table_.back().muon_rate = branch * muon_rate(rows, columns);
    if (residual && how_.zero_projections) table_.back().init = Parameter::Init::zeros, table_.back().init_std = 0;
    table_.back().joined = joined;
    const bool biased = name.ends_with("qkv")             ? c_.qkv_bias
                        : name.ends_with("attention_out") ? c_.attention_out_bias
                                                          : c_.mlp_bias;
    if (!c_.bias && !biased) return;
    // A bias follows its matrix's output: split where the rows are split, whole where the columns are.
    vector(name + ".bias", shape[0], Parameter::Init::zeros, "");
    table_.back().shard_axis = shard_axis == 0 ? 0 : -1;
    table_.back().joined = std::move(joined);
    table_.back().file_parts = split(parts, ".bias", 0);
    multiply(branch, epsilon, branch);
  }

  // The multiplier that makes Muon's step, whose elements are as large as AdamW's, one of spectral norm proportional to
  // sqrt(rows / columns), in units of the base model's square matrices.
  static double muon_rate(int64_t rows, int64_t columns) {
    const auto out = static_cast<double>(rows), in = static_cast<double>(columns);
    return std::sqrt(kBaseChannels * out / in / std::max(out, in));
  }

  // The number of the same product's inputs in the base model.
  double base_width(const std::string& name) const {
    return static_cast<double>(name.ends_with("_out") && !name.ends_with("attention_out")
                                   ? usual_hidden(kBaseChannels, c_.activation)
                                   : kBaseChannels);
  }

  std::vector<FilePart> split(const std::vector<Part>& parts, const char* suffix, int64_t columns) const {
    std::vector<FilePart> result;
    int64_t row = 0;
    for (const Part& part : parts) {
      const bool transposed = gpt2_names_ && columns > 0;
      const Shape shape = columns == 0 ? Shape{part.rows}
                          : transposed ? Shape{columns, part.rows}
                                       : Shape{part.rows, columns};
      result.push_back({part.file + suffix, row, part.rows, transposed, shape});
      row += part.rows;
    }
    return result;
  }

  void vector(std::string name, int64_t size, Parameter::Init init, std::string file) {
    Parameter p{.name = std::move(name), .shape = {size}, .init = init};
    p.layer = layer_, p.epsilon = 1 / (layer_ < 0 ? wide_ : wide_ * deep_);
    p.file_parts = {FilePart{std::move(file), 0, size, false, {size}}};
    table_.push_back(std::move(p));
  }

  void norm(const std::string& name, int64_t size, const std::string& file) {
    vector(name + ".weight", size, Parameter::Init::ones, file + ".weight");
    if (c_.norm == Norm::layernorm) vector(name + ".bias", size, Parameter::Init::zeros, file + ".bias");
  }

  const ModelConfig& c_;
  Parametrization how_;
  double wide_ = 1, deep_ = 1;  // width and depth in units of the base model
  double embedding_rate_ = 1, position_rate_ = 1, head_rate_ = 1;
  std::string type_;
  bool gpt2_names_;
  int layer_ = -1;
  std::vector<Parameter> table_;
};

}  // namespace

const char* name_of(LearningRateGroup group) {
  switch (group) {
    case LearningRateGroup::embedding: return "embedding";
    case LearningRateGroup::matrix: return "matrix";
    case LearningRateGroup::vector: return "vector";
    case LearningRateGroup::head: return "head";
    case LearningRateGroup::router: return "router";
    case LearningRateGroup::balance: return "balance";
  }
  return "?";
}

std::string model_type_of(const ModelConfig& c) {
  const bool own_magnitude = c.rope_magnitude != 1 && !c.is_stretched();
  if (c.logit_softcap > 0 || c.embedding_scale != 1 || c.post_norms || c.global_every || own_magnitude)
    return "train_gpt";
  const bool is_square = c.head_size * c.heads == c.channels;
  if (c.norm == Norm::layernorm && c.activation == Activation::gelu && c.bias && !c.qk_norm && is_square) {
    if (c.positions == Positions::rope) return c.parallel_block && c.head_bias ? "phi" : "train_gpt";
    return c.kv_heads == c.heads && !c.parallel_block && !c.head_bias ? "gpt2" : "train_gpt";
  }
  if (c.norm != Norm::rmsnorm || c.positions != Positions::rope || c.activation != Activation::swiglu ||
      c.parallel_block || c.head_bias)
    return "train_gpt";
  const bool plain = !c.bias && !c.qkv_bias && !c.attention_out_bias && !c.mlp_bias;
  if (c.rotary_width() != c.head_size || c.rope_kind == RopeKind::longrope)
    return plain && !c.experts && !c.qk_norm && is_square && (!c.is_stretched() || c.rope_kind == RopeKind::longrope)
               ? "phi3"
               : "train_gpt";
  if (c.experts) {
    if (c.router_bias || c.shared_hidden || c.qkv_bias != c.attention_out_bias) return "train_gpt";
    return c.qk_norm ? "qwen3_moe" : c.qkv_bias ? "train_gpt" : "mixtral";
  }
  const bool alike = c.qkv_bias == c.attention_out_bias;  // one key says so
  if (c.qk_norm) return alike && !c.mlp_bias && !c.bias ? "qwen3" : "train_gpt";
  if (alike) return "llama";
  return c.qkv_bias && !c.mlp_bias && !c.bias ? "qwen2" : "train_gpt";
}

int64_t query_scalar(const ModelConfig& c) {
  return std::llround(static_cast<double>(c.head_size) / std::pow(c.rope_magnitude, 4));
}

std::string exported_type_of(const ModelConfig& c) {
  const double size = static_cast<double>(c.head_size);
  const bool is_gemma =
      c.norm == Norm::rmsnorm && c.positions == Positions::rope && c.activation == Activation::geglu && !c.experts &&
      !c.bias && !c.qkv_bias && !c.attention_out_bias && !c.mlp_bias && !c.head_bias && !c.parallel_block &&
      c.rotary_width() == c.head_size && c.embedding_scale == std::sqrt(static_cast<double>(c.channels)) &&
      (!c.is_stretched() || c.rope_kind == RopeKind::linear || c.rope_kind == RopeKind::llama3);
  if (!is_gemma) return model_type_of(c);
  if (!c.post_norms && !c.qk_norm && !c.global_every && c.logit_softcap == 0 && c.rope_magnitude == 1) return "gemma";
  const int64_t scalar = query_scalar(c);
  const bool is_scaled = scalar > 0 && std::sqrt(std::sqrt(size / static_cast<double>(scalar))) == c.rope_magnitude;
  if (!c.post_norms || !is_scaled) return model_type_of(c);
  return c.qk_norm ? "gemma3_text" : c.global_every ? model_type_of(c) : "gemma2";
}

std::vector<Parameter> parameter_table(const ModelConfig& config, const Parametrization& parametrization) {
  return Table(config, parametrization).make();
}

const char* head_weight(const ModelConfig& c) { return c.tied_head ? "token_embedding.weight" : "head.weight"; }

int64_t parameter_count(const ModelConfig& config) {
  int64_t count = 0;
  for (const Parameter& p : parameter_table(config)) count += p.shape.elements();
  return count;
}

int64_t active_elements(const ModelConfig& config, const Parameter& p) {
  return p.experts ? p.shape.elements() / p.experts * config.experts_per_token : p.shape.elements();
}

int64_t active_parameter_count(const ModelConfig& config) {
  int64_t count = 0;
  for (const Parameter& p : parameter_table(config)) count += active_elements(config, p);
  return count;
}

void initialise(ThreadTeam& threads, const Parameter& p, uint64_t seed, float* data) {
  const Random random(seed, stream_of("init/" + p.name));
  threads.for_blocks(p.shape.elements(), 65536, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      switch (p.init) {
        case Parameter::Init::zeros: data[i] = 0; break;
        case Parameter::Init::ones: data[i] = 1; break;
        case Parameter::Init::normal:
          data[i] = static_cast<float>(p.init_std * random.normal(static_cast<uint64_t>(i)));
          break;
      }
    }
  });
}

}  // namespace llm
