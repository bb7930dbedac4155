// config.json of the families that are read, and of the project's own type.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/model/gguf_model.h"
#include "llm/model/huggingface.h"

namespace llm {
namespace {

namespace fs = std::filesystem;

// A JSON value for a message. A list or an object may be large or deep: only its kind is shown.
std::string described(const Json& value) {
  if (value.is_array() || value.is_object()) return value.is_array() ? "a list" : "an object";
  const std::string text = shown(value);
  return text.size() > 200 ? text.substr(0, 200) + "..." : text;
}

// The keys of a config.json. A key whose value is null counts as absent, as it does in transformers.
class Keys {
 public:
  Keys(const Json& values, const std::string& path) : values_(values), path_(path) {}

  bool has(const char* key) const { return !values_[key].is_null(); }
  bool says(const char* key) const { return values_.contains(key); }  // if only null
  const Json& at(const char* key) const {
    if (!has(key)) fail(path_, ": \"", key, "\" is missing");
    return values_[key];
  }
  const Json& at(const char* key, bool is_right, const char* expected) const {
    if (!is_right) fail(path_, ": \"", key, "\" is not ", expected, ": ", described(at(key)));
    return at(key);
  }

  int64_t count(const char* key, std::optional<int64_t> otherwise = {}) const {
    if (otherwise && !has(key)) return *otherwise;
    const Json& value = at(key);
    // Some writers print counts as 16.0.
    const double number = value.is_number() ? value.get<double>() : -1;
    at(key, number >= 0 && number < 0x1p48 && number == std::floor(number), "a count");
    return static_cast<int64_t>(number);
  }
  double number(const char* key, std::optional<double> otherwise = {}) const {
    return otherwise && !has(key) ? *otherwise : at(key, at(key).is_number(), "a number").get<double>();
  }
  bool flag(const char* key, std::optional<bool> otherwise = {}) const {
    return otherwise && !has(key) ? *otherwise : at(key, at(key).is_boolean(), "true or false").get<bool>();
  }
  std::string text(const char* key, std::optional<std::string> otherwise = {}) const {
    return otherwise && !has(key) ? *otherwise : at(key, at(key).is_string(), "a string").get<std::string>();
  }
  template <HasNames Enum>
  Enum value(const char* key) const {
    const std::optional<Enum> found = find_value<Enum>(text(key));
    at(key, found.has_value(), "a value that it can have");
    return *found;
  }
  Keys object(const char* key) const { return Keys(at(key, at(key).is_object(), "an object"), path_); }

  // Throws Error unless the flag is absent or `value`, the only one that this model supports.
  void require(const char* key, bool value, const char* why) const {
    if (flag(key, value) != value) fail(path_, ": \"", key, "\": ", described(!value), " is not supported: ", why);
  }
  void require(const char* key, std::initializer_list<const char*> supported) const {
    const std::string value = text(key, *supported.begin());
    std::string known;
    for (const char* s : supported) {
      if (value == s) return;
      known += (known.empty() ? "" : ", ") + std::string(s);
    }
    fail(path_, ": \"", key, "\": ", described(value), " is not supported; supported: ", known);
  }
  const std::string& path() const { return path_; }

 private:
  const Json& values_;
  const std::string& path_;
};

// YaRN's stretching (Peng et al. 2023), with the defaults of transformers' modeling_rope_utils.py.
void read_yarn(const Keys& rope, ModelConfig& c) {
  c.rope_original = rope.count("original_max_position_embeddings", c.context);
  const double ratio = static_cast<double>(c.context) / static_cast<double>(std::max<int64_t>(1, c.rope_original));
  c.rope_factor = rope.says("factor") && !rope.has("factor") ? ratio : rope.number("factor");
  c.rope_low = rope.number("beta_slow", 1), c.rope_high = rope.number("beta_fast", 32);
  rope.require("truncate", true, "the channels between which frequencies change are whole");
  const double stretched = std::log(std::max(1.0, c.rope_factor));
  const double scale = rope.number("mscale", 0), of_all = rope.number("mscale_all_dim", 0);
  const double by_rule =
      scale > 0 && of_all > 0 ? (0.1 * scale * stretched + 1) / (0.1 * of_all * stretched + 1) : 0.1 * stretched + 1;
  c.rope_magnitude = rope.number("attention_factor", by_rule);
}

// Reads rope_theta and the optional rope_scaling beside it; transformers 5 has both in rope_parameters.
void read_rope(const Keys& keys, ModelConfig& c) {
  c.rope_theta = keys.number("rope_theta", 10000);
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!keys.has(name)) continue;
    const Keys rope = keys.object(name);
    const char* const key = rope.has("rope_type") ? "rope_type" : "type";  // "type" is the older spelling
    rope.require(key, {"default", "none", "llama3", "linear", "dynamic", "yarn"});
    const std::optional<RopeKind> kind = find_value<RopeKind>(rope.text(key, "default"));
    ModelConfig scaled = c;
    scaled.rope_kind = kind.value_or(RopeKind::llama3);
    if (kind == RopeKind::yarn) {
      read_yarn(rope, scaled);
    } else if (kind) {
      scaled.rope_factor = rope.number("factor");
    }
    if (kind == RopeKind::llama3) {
      scaled.rope_low = rope.number("low_freq_factor");
      scaled.rope_high = rope.number("high_freq_factor");
      scaled.rope_original = rope.count("original_max_position_embeddings");
    }
    if (scaled.rope_factor != 1) c = scaled;  // a factor of 1 stretches nothing
    if (rope.number("partial_rotary_factor", 1) != 1)
      fail(keys.path(), ": \"partial_rotary_factor\" is not supported: all of a head is rotated");
    c.rope_theta = rope.number("rope_theta", c.rope_theta);
  }
  if (keys.number("partial_rotary_factor", 1) != 1)
    fail(keys.path(), ": \"partial_rotary_factor\" is not supported: all of a head is rotated");
}

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
constexpr Family kFamilies[] = {{"llama", 2048, 0, 0, 1e-6},     {"qwen2", 32768, 0, 0, 1e-6},
                                {"qwen3", 32768, 0, 128, 1e-6},  {"mistral", 131072, 8, 0, 1e-6},
                                {"phi3", 4096, 0, 0, 1e-5},      {"gemma", 8192, 16, 256, 1e-6},
                                {"mixtral", 131072, 8, 0, 1e-5}, {"qwen3_moe", 32768, 4, 0, 1e-6}};

// Attention that reaches only so far back is attention over the whole context if that is no longer.
void read_window(const Keys& keys, const std::string& type, ModelConfig& c) {
  if (type == "mistral" || type == "mixtral" || type == "phi3") {
    const int64_t usual = type == "mistral" && !keys.says("sliding_window") ? 4096 : c.context;
    c.context = std::min(c.context, keys.count("sliding_window", usual));
    return;
  }
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

ModelConfig read_llama(const Keys& keys, const std::string& type) {
  const Family& family =
      *std::find_if(std::begin(kFamilies), std::end(kFamilies), [&](const Family& f) { return type == f.type; });
  ModelConfig c;
  const bool gemma = type == "gemma";
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
  c.norm_epsilon = keys.number("rms_norm_eps", family.norm_epsilon);
  read_rope(keys, c);
  c.tied_head = keys.flag("tie_word_embeddings", gemma);
  if (gemma) {
    keys.require("hidden_act", {"gelu_pytorch_tanh", "gelu"});  // Gemma means the tanh form by both
    keys.require("use_bidirectional_attention", false, "a token attends to those before it");
    c.activation = Activation::geglu;
    c.embedding_scale = std::sqrt(static_cast<double>(c.channels));
  } else {
    keys.require("hidden_act", {"silu", "swish"});
  }
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
  if (keys.has("rope_kind")) c.rope_kind = keys.value<RopeKind>("rope_kind");
  c.rope_magnitude = keys.number("rope_magnitude", 1);
  c.rope_factor = keys.number("rope_factor", 1);
  c.rope_low = keys.number("rope_low", 1);
  c.rope_high = keys.number("rope_high", 4);
  c.rope_original = keys.count("rope_original", 8192);
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

Json token_ids(const EndTokens& tokens) {
  const Json bos = tokens.bos < 0 ? Json() : Json(tokens.bos);
  if (tokens.eos.empty()) return {{"bos_token_id", bos}, {"eos_token_id", nullptr}};
  return {{"bos_token_id", bos}, {"eos_token_id", tokens.eos.size() == 1 ? Json(tokens.eos[0]) : Json(tokens.eos)}};
}

Json rope_scaling_json(const ModelConfig& c) {
  if (c.rope_factor == 1) return {};
  Json j = {{"rope_type", name_of(c.rope_kind)}, {"factor", c.rope_factor}};
  if (c.rope_kind == RopeKind::llama3)
    j.update({{"low_freq_factor", c.rope_low},
              {"high_freq_factor", c.rope_high},
              {"original_max_position_embeddings", c.rope_original}});
  if (c.rope_kind == RopeKind::yarn)
    j.update({{"beta_slow", c.rope_low},
              {"beta_fast", c.rope_high},
              {"attention_factor", c.rope_magnitude},
              {"original_max_position_embeddings", c.rope_original}});
  return j;
}

}  // namespace

ModelConfig parse_config(const std::string& text, const std::string& path) {
  const Json values = parse_json(text, path, {.python_numbers = true});
  if (!values.is_object()) fail(path, ": not a JSON object");
  const Keys keys(values, path);
  const std::string type = keys.text("model_type");
  keys.require("model_type",
               {"gpt2", "llama", "qwen2", "qwen3", "mistral", "mixtral", "qwen3_moe", "phi3", "gemma", "train_gpt"});
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

std::string config_json(const ModelConfig& c, const EndTokens& tokens) {
  const std::string type = model_type_of(c);
  Json j;
  if (type == "gpt2") {
    j = {{"architectures", {"GPT2LMHeadModel"}},
         {"model_type", type},
         {"vocab_size", c.vocabulary},
         {"n_positions", c.context},
         {"n_ctx", c.context},
         {"n_embd", c.channels},
         {"n_layer", c.layers},
         {"n_head", c.heads},
         {"n_inner", c.hidden},
         {"activation_function", "gelu_new"},
         {"resid_pdrop", 0.0},
         {"embd_pdrop", 0.0},
         {"attn_pdrop", 0.0},
         {"layer_norm_epsilon", c.norm_epsilon},
         {"initializer_range", 0.02}};
  } else if (type == "train_gpt") {
    j = {{"model_type", type},
         {"vocab_size", c.vocabulary},
         {"context", c.context},
         {"layers", c.layers},
         {"heads", c.heads},
         {"kv_heads", c.kv_heads},
         {"channels", c.channels},
         {"head_size", c.head_size},
         {"hidden", c.hidden},
         {"norm", name_of(c.norm)},
         {"positions", name_of(c.positions)},
         {"activation", name_of(c.activation)},
         {"qk_norm", c.qk_norm},
         {"bias", c.bias},
         {"tied_head", c.tied_head},
         {"norm_epsilon", c.norm_epsilon},
         {"rope_theta", c.rope_theta}};
    for (const auto& [key, value] :
         {std::pair{"qkv_bias", c.qkv_bias}, {"attention_out_bias", c.attention_out_bias}, {"mlp_bias", c.mlp_bias}})
      if (value) j[key] = value;
    if (c.experts)
      j.update({{"experts", c.experts},
                {"experts_per_token", c.experts_per_token},
                {"shared_hidden", c.shared_hidden},
                {"router_bias", c.router_bias}});
    if (c.embedding_scale != 1) j["embedding_scale"] = c.embedding_scale;
    if (c.logit_softcap > 0) j["logit_softcap"] = c.logit_softcap;
    if (c.rope_factor != 1)
      j.update({{"rope_kind", name_of(c.rope_kind)},
                {"rope_magnitude", c.rope_magnitude},
                {"rope_factor", c.rope_factor},
                {"rope_low", c.rope_low},
                {"rope_high", c.rope_high},
                {"rope_original", c.rope_original}});
  } else {
    const bool qwen = type.starts_with("qwen"), biased = c.bias || c.qkv_bias;
    const char* name = type == "qwen3"       ? "Qwen3ForCausalLM"
                       : type == "qwen3_moe" ? "Qwen3MoeForCausalLM"
                       : type == "mixtral"   ? "MixtralForCausalLM"
                       : qwen                ? "Qwen2ForCausalLM"
                                             : "LlamaForCausalLM";
    j = {{"architectures", {name}},
         {"model_type", type},
         {"vocab_size", c.vocabulary},
         {"hidden_size", c.channels},
         {"intermediate_size", c.hidden},
         {"num_hidden_layers", c.layers},
         {"num_attention_heads", c.heads},
         {"num_key_value_heads", c.kv_heads},
         {"head_dim", c.head_size},
         {"hidden_act", "silu"},
         {"max_position_embeddings", c.context},
         {"rms_norm_eps", c.norm_epsilon},
         {"rope_theta", c.rope_theta},
         {"rope_scaling", rope_scaling_json(c)},
         {"attention_bias", biased},
         {"attention_dropout", 0.0},
         {"initializer_range", 0.02},
         {"use_cache", true}};
    if (qwen) {
      j["use_sliding_window"] = false;
      j["sliding_window"] = nullptr;
      j["max_window_layers"] = c.layers;
      j["layer_types"] = std::vector<std::string>(static_cast<size_t>(c.layers), "full_attention");
    } else if (type == "llama") {
      j["mlp_bias"] = c.bias || c.mlp_bias;
    }
    if (type == "mixtral") j.update({{"num_local_experts", c.experts}, {"sliding_window", nullptr}});
    if (type == "qwen3_moe")
      j.update({{"num_experts", c.experts},
                {"moe_intermediate_size", c.hidden},
                {"norm_topk_prob", true},
                {"decoder_sparse_step", 1},
                {"mlp_only_layers", Json::array()}});
    if (c.experts) j.update({{"num_experts_per_tok", c.experts_per_token}, {"router_aux_loss_coef", 0.001}});
  }
  j.update(token_ids(tokens));
  if (type != "train_gpt") j["tie_word_embeddings"] = c.tied_head;
  j["torch_dtype"] = "float32";
  return json_text(j);
}

std::string tokenizer_config_json(const ModelConfig& config, const EndTokens& tokens,
                                  const std::string& tokenizer_json) {
  Json j = {{"tokenizer_class", "PreTrainedTokenizerFast"},
            {"model_max_length", config.context},
            {"clean_up_tokenization_spaces", false}};
  const Json document = json_or_null(tokenizer_json);
  const auto name_of = [&](int id) -> Json {
    for (const Json& token : document["added_tokens"])
      if (token["id"] == id) return token["content"];
    return nullptr;
  };
  if (const Json bos = name_of(tokens.bos); !bos.is_null()) j["bos_token"] = bos;
  if (!tokens.eos.empty())
    if (const Json eos = name_of(tokens.eos[0]); !eos.is_null()) j["eos_token"] = eos;
  return json_text(j);
}

std::string generation_config_json(const EndTokens& tokens) {
  Json j = token_ids(tokens);
  j["_from_model_config"] = true;
  return json_text(j);
}

}  // namespace llm
