// config.json of the families that are read, and of the project's own type.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/model/config_keys.h"
#include "llm/model/gguf_model.h"
#include "llm/model/huggingface.h"
#include "llm/model/huggingface_rope.h"

namespace llm {
namespace {

namespace fs = std::filesystem;

ModelConfig read_gpt2(const Keys& keys) {
  ModelConfig c;
  set_architecture(c, Architecture::gpt2);
  c.vocabulary = keys.count("vocab_size");
  c.context = keys.has("n_positions") ? keys.count("n_positions") : keys.count("n_ctx");
  c.channels = keys.count("n_embd");
  c.layers = keys.count("n_layer");
  c.heads = c.kv_heads = keys.count("n_head");
  if (c.heads < 1 || c.channels % c.heads)
    fail(keys.path(), ": \"n_embd\" ", c.channels, " is not a multiple of \"n_head\" ", c.heads);
  c.head_size = c.channels / c.heads;
  c.hidden = keys.count("n_inner", 4 * c.channels);
  c.norm_epsilon = keys.number("layer_norm_epsilon", 1e-5);
  // These are all names of GELU's tanh form; "gelu" is the exact GELU.
  keys.require("activation_function", {"gelu_new", "gelu_pytorch_tanh", "gelu_fast"});
  c.tied_head = keys.flag("tie_word_embeddings", true);
  keys.require("scale_attn_weights", true, "attention scores are divided by the root of the head size");
  keys.require("scale_attn_by_inverse_layer_idx", false, "attention scores are scaled alike in all layers");
  keys.require("add_cross_attention", false, "there is no encoder to attend to");
  return c;
}

// A family of models that are Llama's but for a few switches; keys that a file lacks have the values that transformers
// gives them for the family.
struct Family {
  const char* type;
  int64_t context, kv_heads, head_size;  // 0: as many as heads; channels / heads
  double norm_epsilon;
};
constexpr Family kFamilies[] = {
    {"llama", 2048, 0, 0, 1e-6},     {"qwen2", 32768, 0, 0, 1e-6},         {"qwen3", 32768, 0, 128, 1e-6},
    {"mistral", 131072, 8, 0, 1e-6}, {"phi3", 4096, 0, 0, 1e-5},           {"gemma", 8192, 16, 256, 1e-6},
    {"mixtral", 131072, 8, 0, 1e-5}, {"qwen3_moe", 32768, 4, 0, 1e-6},     {"phi", 2048, 0, 0, 1e-5},
    {"gemma2", 8192, 4, 256, 1e-6},  {"gemma3_text", 131072, 4, 256, 1e-6}};

// Gemma 2 and 3 have layers with a window and layers without one, in a period.
void read_gemma_layers(const Keys& keys, const std::string& type, ModelConfig& c) {
  c.global_every = type == "gemma2" ? 2 : keys.count("sliding_window_pattern", 6);
  if (keys.has("layer_types")) {
    const Json& types = keys.at("layer_types");
    if (types.size() != static_cast<size_t>(c.layers))
      fail(keys.path(), ": \"layer_types\" is not a list of ", c.layers, " layers");
    int64_t first = 0;
    while (first < c.layers && types[first] != "full_attention") ++first;
    c.global_every = first + 1;
    for (int64_t l = 0; l < c.layers; ++l)
      if (types[l] != (c.is_local(l) ? "sliding_attention" : "full_attention"))
        fail(keys.path(), ": \"layer_types\": ", described(types[l]), " in layer ", l,
             " is not supported: layers without a window come in a period, here each ", c.global_every, "-th");
  }
  if (c.global_every < 1) fail(keys.path(), ": \"sliding_window_pattern\" is ", c.global_every);
  c.global_every = std::min(c.global_every, c.layers + 1);
  if (c.is_local(0)) c.context = std::min(c.context, keys.count("sliding_window", 4096));
  // Without a theta of their own, layers with a window as long as the context are like the others.
  if (type == "gemma2" || !c.is_local(0)) c.global_every = 0, c.rope_local_theta = ModelConfig().rope_local_theta;
}

// Attention that reaches only so far back is attention over the whole context if that is no longer.
void read_window(const Keys& keys, const std::string& type, ModelConfig& c) {
  if (type == "mistral" || type == "mixtral" || type == "phi3") {
    const int64_t usual = type == "mistral" && !keys.says("sliding_window") ? 4096 : c.context;
    c.context = std::min(c.context, keys.count("sliding_window", usual));
    return;
  }
  if (type == "gemma2" || type == "gemma3_text") return read_gemma_layers(keys, type, c);
  // A window may be switched on for the layers from max_window_layers on, of which there may be none; layer_types says which.
  if (keys.has("layer_types")) {
    for (const Json& layer : keys.at("layer_types"))
      if (layer != "full_attention") fail(keys.path(), ": \"layer_types\": ", described(layer), " is not supported");
  } else if (keys.count("max_window_layers", type.starts_with("qwen") ? 28 : 0) < c.layers &&
             (!keys.has("sliding_window") || keys.count("sliding_window") < c.context)) {
    keys.require("use_sliding_window", false, "attention reaches over the whole context");
  }
}

// The experts of Mixtral and of Qwen3-MoE, in every layer. The width of an MLP beside them, which no layer then has, is
// not kept.
void read_experts(const Keys& keys, const std::string& type, ModelConfig& c) {
  const bool mixtral = type == "mixtral";
  // transformers knows the number by both names.
  const char* const usual = mixtral ? "num_local_experts" : "num_experts";
  const char* const count = keys.has(usual) ? usual : mixtral ? "num_experts" : "num_local_experts";
  c.experts = keys.count(count, mixtral ? 8 : 128);
  c.experts_per_token = keys.count("num_experts_per_tok", mixtral ? 2 : 8);
  if (mixtral) return;
  c.hidden = keys.count("moe_intermediate_size", 768);
  if (!keys.flag("norm_topk_prob", false))
    fail(keys.path(), ": \"norm_topk_prob\": false is not supported: the weights of a token's experts add up to 1");
  if (keys.count("decoder_sparse_step", 1) != 1)
    fail(keys.path(), ": \"decoder_sparse_step\" is not supported: every layer has experts");
  if (keys.has("mlp_only_layers") && keys.at("mlp_only_layers") != Json::array())
    fail(keys.path(), ": \"mlp_only_layers\" is not supported: every layer has experts");
}

// Phi-1 and Phi-2: GPT-2's layers with rotary positions, attention beside the MLP.
void read_phi(const Keys& keys, ModelConfig& c) {
  keys.require("hidden_act", {"gelu_new", "gelu_pytorch_tanh", "gelu_fast"});
  keys.require("qk_layernorm", false, "queries and keys have no LayerNorm");
  c.norm = Norm::layernorm, c.activation = Activation::gelu;
  c.bias = c.head_bias = c.parallel_block = true;
}

void read_gemma(const Keys& keys, const std::string& type, ModelConfig& c) {
  const char* const key = keys.has("hidden_activation") ? "hidden_activation" : "hidden_act";
  keys.require(key, {"gelu_pytorch_tanh", "gelu"});  // Gemma means the tanh form by both
  keys.require("use_bidirectional_attention", false, "a token attends to those before it");
  c.activation = Activation::geglu;
  c.embedding_scale = std::sqrt(static_cast<double>(c.channels));
  if (type == "gemma") return;
  c.post_norms = true;
  c.qk_norm = type == "gemma3_text";
  // A key that is null says that there is none; one that is missing that there is the usual one.
  const bool usual = type == "gemma2";
  const auto cap = [&](const char* name, double otherwise) {
    return keys.says(name) || !usual ? keys.number(name, 0) : otherwise;
  };
  c.logit_softcap = cap("final_logit_softcapping", 30);
  if (const double attention = cap("attn_logit_softcapping", 50); attention != 0)
    fail(keys.path(), ": \"attn_logit_softcapping\": ", attention,
         " is not supported: attention scores have no cap; a model trained without it says null");
  // Scores are divided by the root of this number in place of the head size: queries and keys are so much larger.
  const double scalar = keys.number("query_pre_attn_scalar", 256);
  if (!(scalar > 0)) fail(keys.path(), ": \"query_pre_attn_scalar\" is ", scalar);
  if (scalar != static_cast<double>(c.head_size))
    c.rope_magnitude *= std::sqrt(std::sqrt(static_cast<double>(c.head_size) / scalar));
}

ModelConfig read_llama(const Keys& keys, const std::string& type) {
  const Family& family =
      *std::find_if(std::begin(kFamilies), std::end(kFamilies), [&](const Family& f) { return type == f.type; });
  ModelConfig c;
  const bool gemma = type.starts_with("gemma");
  set_architecture(c, type.starts_with("qwen3") ? Architecture::qwen3 : Architecture::llama);
  c.vocabulary = keys.count("vocab_size");
  c.context = keys.count("max_position_embeddings", family.context);
  c.channels = keys.count("hidden_size");
  c.hidden = type == "qwen3_moe" ? 1 : keys.count("intermediate_size");
  c.layers = keys.count("num_hidden_layers");
  c.heads = keys.count("num_attention_heads");
  c.kv_heads = keys.count("num_key_value_heads", family.kv_heads ? family.kv_heads : c.heads);
  if (c.heads < 1 || c.kv_heads < 1 || c.heads % c.kv_heads)
    fail(keys.path(), ": \"num_attention_heads\" ", c.heads, " is not a multiple of \"num_key_value_heads\" ",
         c.kv_heads);
  if (!family.head_size && !keys.has("head_dim") && c.channels % c.heads)
    fail(keys.path(), ": \"hidden_size\" ", c.channels, " is not a multiple of \"num_attention_heads\" ", c.heads);
  c.head_size = keys.count("head_dim", family.head_size ? family.head_size : c.channels / c.heads);
  c.norm_epsilon = keys.number(type == "phi" ? "layer_norm_eps" : "rms_norm_eps", family.norm_epsilon);
  read_rope(keys, type, c);
  c.tied_head = keys.flag("tie_word_embeddings", gemma);
  if (type == "phi") {
    read_phi(keys, c);
  } else if (gemma) {
    read_gemma(keys, type, c);
  } else {
    keys.require("hidden_act", {"silu", "swish"});
  }
  if (type == "phi") return c;
  c.qkv_bias = type == "qwen2" || keys.flag("attention_bias", false);
  c.attention_out_bias = type != "qwen2" && c.qkv_bias;
  c.mlp_bias = keys.flag("mlp_bias", false);
  if (c.qkv_bias && c.attention_out_bias && c.mlp_bias)
    c.bias = true, c.qkv_bias = c.attention_out_bias = c.mlp_bias = false;
  read_window(keys, type, c);
  if (type == "mixtral" || type == "qwen3_moe") read_experts(keys, type, c);
  return c;
}

ModelConfig read_own(const Keys& keys) {
  ModelConfig c;
  c.vocabulary = keys.count("vocab_size");
  c.context = keys.count("context");
  c.layers = keys.count("layers");
  c.heads = keys.count("heads");
  c.kv_heads = keys.count("kv_heads", c.heads);
  c.channels = keys.count("channels");
  c.head_size = keys.count("head_size");
  c.hidden = keys.count("hidden");
  c.experts = keys.count("experts", 0);
  c.experts_per_token = keys.count("experts_per_token", 0);
  c.shared_hidden = keys.count("shared_hidden", 0);
  c.router_bias = keys.flag("router_bias", false);
  c.norm = keys.value<Norm>("norm");
  c.positions = keys.value<Positions>("positions");
  c.activation = keys.value<Activation>("activation");
  c.qk_norm = keys.flag("qk_norm");
  c.bias = keys.flag("bias");
  c.qkv_bias = keys.flag("qkv_bias", false);
  c.attention_out_bias = keys.flag("attention_out_bias", false);
  c.mlp_bias = keys.flag("mlp_bias", false);
  c.tied_head = keys.flag("tied_head");
  c.logit_softcap = keys.number("logit_softcap", 0);
  c.norm_epsilon = keys.number("norm_epsilon");
  c.rope_theta = keys.number("rope_theta", c.rope_theta);
  c.embedding_scale = keys.number("embedding_scale", 1);
  c.rope_magnitude = keys.number("rope_magnitude", 1);
  const double factor = keys.number("rope_factor", 1);
  const RopeKind kind = keys.has("rope_kind") ? keys.value<RopeKind>("rope_kind") : RopeKind::llama3;
  if (factor != 1 || kind == RopeKind::longrope) {
    c.rope_factor = factor, c.rope_kind = kind;
    c.rope_low = keys.number("rope_low", 1);
    c.rope_high = keys.number("rope_high", 4);
    c.rope_original = keys.count("rope_original", 8192);
  }
  c.head_bias = keys.flag("head_bias", false);
  c.parallel_block = keys.flag("parallel_block", false);
  c.post_norms = keys.flag("post_norms", false);
  c.rotary_size = keys.count("rotary_size", 0);
  c.global_every = keys.count("global_every", 0);
  if (c.global_every) c.rope_local_theta = keys.number("rope_local_theta", 10000);
  if (c.rope_kind == RopeKind::longrope) {
    c.rope_near = keys.numbers("rope_near");
    c.rope_far = keys.numbers("rope_far");
  }
  return c;
}

// Refuses what ModelConfig::check() does not see: products that overflow, and tables of names that would fill the
// memory.
void check_size(const ModelConfig& c, const std::string& path) {
  if (c.layers > 100'000) fail(path, ": a model of ", c.layers, " layers");
  const int64_t limit = int64_t{1} << 40;
  if (std::max({c.vocabulary, c.context, c.qkv_width(), 2 * c.hidden * std::max<int64_t>(1, c.experts),
                2 * c.shared_hidden}) > limit / c.channels)
    fail(path, ": the model's sizes make a matrix of more than 2^40 elements");
  if (c.experts * c.layers > 1'000'000) fail(path, ": a model of ", c.experts, " experts in ", c.layers, " layers");
}

}  // namespace

ModelConfig parse_config(const std::string& text, const std::string& path) {
  const Json values = parse_json(text, path, {.python_numbers = true});
  if (!values.is_object()) fail(path, ": not a JSON object");
  const Keys keys(values, path);
  const std::string type = keys.text("model_type");
  keys.require("model_type", {"gpt2", "llama", "qwen2", "qwen3", "mistral", "mixtral", "qwen3_moe", "phi", "phi3",
                              "gemma", "gemma2", "gemma3_text", "train_gpt"});
  if (keys.has("quantization_config")) {
    const Keys quantized = keys.object("quantization_config");
    fail(path, ": \"quantization_config\": weights quantized by ", quantized.text("quant_method", "an unknown method"),
         " are not read; take the model that they were made of, or a GGUF file of it");
  }
  try {
    const ModelConfig config = type == "gpt2"        ? read_gpt2(keys)
                               : type == "train_gpt" ? read_own(keys)
                                                     : read_llama(keys, type);
    config.check();
    check_size(config, path);
    return config;
  } catch (const UsageError& e) {  // check() says what is wrong as with a command line; here it is a file
    fail(path, ": ", e.what());
  }
}

ModelConfig read_config(const std::string& path) {
  if (const std::string gguf = gguf_of_model(path); !gguf.empty()) return GgufModel(gguf).config();
  std::error_code error;
  const std::string file = fs::is_directory(path, error) ? path + "/config.json" : path;
  return parse_config(read_file(file), file);
}

EndTokens read_end_tokens(const std::string& directory) {
  if (const std::string gguf = gguf_of_model(directory); !gguf.empty()) return GgufModel(gguf).end_tokens();
  EndTokens tokens;
  // generation_config.json, if it is there, decides before config.json does.
  for (const char* name : {"generation_config.json", "config.json"}) {
    std::error_code error;
    const std::string path = directory + "/" + name;
    if (!fs::exists(path, error)) continue;
    const Json values = json_or_null(read_file(path));
    const auto id = [&](const Json& value) {
      return value.is_number_unsigned() && value.get<uint64_t>() < uint64_t{1} << 24 ? value.get<int>() : -1;
    };
    if (tokens.bos < 0) tokens.bos = id(values["bos_token_id"]);
    if (!tokens.eos.empty()) continue;
    const Json& eos = values["eos_token_id"];
    for (const Json& value : eos.is_array() ? eos : Json::array({eos}))
      if (id(value) >= 0) tokens.eos.push_back(id(value));
  }
  return tokens;
}

}  // namespace llm
