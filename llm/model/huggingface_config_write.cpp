// Writes config.json and the small files beside it.
#include <cmath>

#include "llm/base/json.h"
#include "llm/model/huggingface.h"

namespace llm {
namespace {

Json token_ids(const EndTokens& tokens) {
  const Json bos = tokens.bos < 0 ? Json() : Json(tokens.bos);
  if (tokens.eos.empty()) return {{"bos_token_id", bos}, {"eos_token_id", nullptr}};
  return {{"bos_token_id", bos}, {"eos_token_id", tokens.eos.size() == 1 ? Json(tokens.eos[0]) : Json(tokens.eos)}};
}

Json rope_scaling_json(const ModelConfig& c) {
  if (!c.is_stretched()) return {};
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
  if (c.rope_kind == RopeKind::longrope)
    j.update({{"attention_factor", c.rope_magnitude},
              {"original_max_position_embeddings", c.rope_original},
              {"short_factor", c.rope_near},
              {"long_factor", c.rope_far}});
  return j;
}

// The share of a head that is turned. Whoever reads it cuts the product with the head's size off to a whole number.
double rotary_share(const ModelConfig& c) {
  const double size = static_cast<double>(c.head_size), turned = static_cast<double>(c.rotary_width());
  const double share = turned / size;
  return share * size < turned ? std::nextafter(share, 1.0) : share;
}

// The keys that all families but GPT-2 have.
Json decoder_json(const ModelConfig& c, const std::string& type, const char* architecture) {
  return {{"architectures", {architecture}},
          {"model_type", type},
          {"vocab_size", c.vocabulary},
          {"hidden_size", c.channels},
          {"intermediate_size", c.hidden},
          {"num_hidden_layers", c.layers},
          {"num_attention_heads", c.heads},
          {"num_key_value_heads", c.kv_heads},
          {"max_position_embeddings", c.context},
          {"rope_theta", c.rope_theta},
          {"rope_scaling", rope_scaling_json(c)},
          {"attention_dropout", 0.0},
          {"initializer_range", 0.02},
          {"use_cache", true}};
}

// The keys of Phi-1, Phi-2 and Phi-3.
Json phi_json(const ModelConfig& c, const std::string& type) {
  const bool phi3 = type == "phi3";
  Json j = decoder_json(c, type, phi3 ? "Phi3ForCausalLM" : "PhiForCausalLM");
  j.update({{"hidden_act", phi3 ? "silu" : "gelu_new"},
            {phi3 ? "rms_norm_eps" : "layer_norm_eps", c.norm_epsilon},
            {"partial_rotary_factor", rotary_share(c)},
            {"resid_pdrop", 0.0},
            {"embd_pdrop", 0.0}});
  if (phi3)
    j.update({{"original_max_position_embeddings", c.is_stretched() ? c.rope_original : c.context},
              {"sliding_window", nullptr},
              {"pad_token_id", nullptr}});
  else
    j["qk_layernorm"] = false;
  return j;
}

// The keys of the three Gemmas.
Json gemma_json(const ModelConfig& c, const std::string& type) {
  const char* const name = type == "gemma"    ? "GemmaForCausalLM"
                           : type == "gemma2" ? "Gemma2ForCausalLM"
                                              : "Gemma3ForCausalLM";
  Json j = decoder_json(c, type, name);
  j.update({{"head_dim", c.head_size},
            {"hidden_act", "gelu_pytorch_tanh"},
            {"hidden_activation", "gelu_pytorch_tanh"},
            {"rms_norm_eps", c.norm_epsilon},
            {"attention_bias", false},
            {"pad_token_id", nullptr}});
  if (type == "gemma") return j;
  const Json cap = c.logit_softcap > 0 ? Json(c.logit_softcap) : Json();
  std::vector<std::string> layers;
  for (int64_t l = 0; l < c.layers; ++l)
    layers.emplace_back(type == "gemma2" ? (l % 2 ? "full_attention" : "sliding_attention")
                        : c.is_local(l)  ? "sliding_attention"
                                         : "full_attention");
  j.update({{"attn_logit_softcapping", nullptr},
            {"final_logit_softcapping", cap},
            {"query_pre_attn_scalar", query_scalar(c)},
            {"sliding_window", c.context},
            {"layer_types", layers}});
  if (type == "gemma3_text") j["rope_local_base_freq"] = c.rope_local_theta;
  return j;
}

}  // namespace

std::string config_json(const ModelConfig& c, const EndTokens& tokens) {
  return config_json(c, tokens, model_type_of(c));
}

std::string config_json(const ModelConfig& c, const EndTokens& tokens, const std::string& type) {
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
  } else if (type.starts_with("phi")) {
    j = phi_json(c, type);
  } else if (type.starts_with("gemma")) {
    j = gemma_json(c, type);
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
    for (const auto& [key, value] : {std::pair{"qkv_bias", c.qkv_bias},
                                     {"attention_out_bias", c.attention_out_bias},
                                     {"mlp_bias", c.mlp_bias},
                                     {"head_bias", c.head_bias},
                                     {"parallel_block", c.parallel_block},
                                     {"post_norms", c.post_norms}})
      if (value) j[key] = value;
    if (c.rotary_size) j["rotary_size"] = c.rotary_size;
    if (c.global_every) j.update({{"global_every", c.global_every}, {"rope_local_theta", c.rope_local_theta}});
    if (c.experts)
      j.update({{"experts", c.experts},
                {"experts_per_token", c.experts_per_token},
                {"shared_hidden", c.shared_hidden},
                {"router_bias", c.router_bias}});
    if (c.embedding_scale != 1) j["embedding_scale"] = c.embedding_scale;
    if (c.logit_softcap > 0) j["logit_softcap"] = c.logit_softcap;
    if (c.rope_magnitude != 1) j["rope_magnitude"] = c.rope_magnitude;
    if (c.is_stretched())
      j.update({{"rope_kind", name_of(c.rope_kind)},
                {"rope_factor", c.rope_factor},
                {"rope_low", c.rope_low},
                {"rope_high", c.rope_high},
                {"rope_original", c.rope_original}});
    if (c.rope_kind == RopeKind::longrope) j.update({{"rope_near", c.rope_near}, {"rope_far", c.rope_far}});
  } else {
    const bool qwen = type.starts_with("qwen"), biased = c.bias || c.qkv_bias;
    const char* name = type == "qwen3"       ? "Qwen3ForCausalLM"
                       : type == "qwen3_moe" ? "Qwen3MoeForCausalLM"
                       : type == "mixtral"   ? "MixtralForCausalLM"
                       : qwen                ? "Qwen2ForCausalLM"
                                             : "LlamaForCausalLM";
    j = decoder_json(c, type, name);
    j.update({{"head_dim", c.head_size},
              {"hidden_act", "silu"},
              {"rms_norm_eps", c.norm_epsilon},
              {"attention_bias", biased}});
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
