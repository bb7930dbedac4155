// Hugging Face's configs and weights: what is written is what was meant, and can be read back.
#include <doctest/doctest.h>
#include <unistd.h>

#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/random.h"
#include "llm/model/huggingface.h"
#include "llm/model/safetensors.h"
#include "test/helpers.h"

using namespace llm;
using namespace test;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

ModelConfig small_config(const std::string& architecture) {
  ModelConfig c;
  set_architecture(c, find_value<Architecture>(architecture).value_or(Architecture::modern));
  c.vocabulary = 29, c.context = 16, c.layers = 2, c.heads = 4, c.kv_heads = architecture == "gpt2" ? 4 : 2;
  c.channels = 24, c.head_size = architecture == "qwen3" ? 8 : 6, c.hidden = 40;
  if (architecture == "train_gpt") c.activation = Activation::relu2, c.bias = true, c.positions = Positions::learned;
  return c;
}

std::vector<std::vector<float>> random_weights(const std::vector<Parameter>& table) {
  std::vector<std::vector<float>> weights;
  for (const Parameter& p : table) {
    auto& w = weights.emplace_back(static_cast<size_t>(p.shape.elements()));
    const Random random(7, stream_of(p.name));
    for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(random.normal(i));
  }
  return weights;
}

void save(const std::string& path, const std::vector<Parameter>& table,
          const std::vector<std::vector<float>>& weights) {
  save_parameters(path, table, [&](size_t i) { return weights[i].data(); });
}

std::vector<std::vector<float>> load(const std::string& path, const std::vector<Parameter>& table) {
  std::vector<std::vector<float>> weights(table.size());
  load_parameters(path, table, [&](size_t i) {
    weights[i].assign(static_cast<size_t>(table[i].shape.elements()), std::numeric_limits<float>::quiet_NaN());
    return weights[i].data();
  });
  return weights;
}

// A tensor of a file that another program could have written.
struct Raw {
  std::string dtype, bytes;
  std::vector<int64_t> shape;
};
std::map<std::string, Raw> raw_tensors(const std::string& path) {
  std::map<std::string, Raw> result;
  const SafetensorsFile file(path);
  for (auto& [name, entry] : file.tensors())
    result[name] = {entry.dtype, std::string(reinterpret_cast<const char*>(entry.bytes.data()), entry.bytes.size()),
                    entry.shape};
  return result;
}
void write_raw(const std::string& path, const std::map<std::string, Raw>& tensors) {
  json header = json::object();
  std::string data;
  for (auto& [name, t] : tensors) {
    header[name] = {
        {"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {data.size(), data.size() + t.bytes.size()}}};
    data += t.bytes;
  }
  write_file_atomically(path, safetensors(header.dump(), data));
}

}  // namespace

TEST_CASE("configs: written and read back, for every model type and preset") {
  std::vector<ModelConfig> configs;
  for (const char* name : {"gpt2", "llama", "qwen3", "train_gpt"}) {
    configs.push_back(small_config(name));
    CHECK(model_type_of(configs.back()) == name);
  }
  configs[1].norm_epsilon = 3e-6, configs[1].rope_theta = 12345.5, configs[2].tied_head = false;
  for (const Preset& p : presets()) configs.push_back(config_of(p));
  for (const ModelConfig& config : configs) {
    for (const int eos : {-1, 11}) {
      const std::string text = config_json(config, eos);
      CAPTURE(text);
      CHECK(parse_config(text, "c") == config);
      const json j = json::parse(text);
      CHECK(j["model_type"] == model_type_of(config));
      CHECK(j["eos_token_id"] == (eos < 0 ? json() : json(11)));
    }
  }
  json j = json::parse(config_json(configs[0], 5));
  CHECK(j["architectures"] == json::array({"GPT2LMHeadModel"}));
  CHECK(j["activation_function"] == "gelu_new");
  CHECK(json::parse(config_json(configs[1], 5))["architectures"] == json::array({"LlamaForCausalLM"}));
  j = json::parse(config_json(configs[2], 5));
  CHECK(j["architectures"] == json::array({"Qwen3ForCausalLM"}));
  CHECK(j["torch_dtype"] == "float32");
  CHECK(json::parse(generation_config_json(5)) ==
        json{{"bos_token_id", 5}, {"eos_token_id", 5}, {"_from_model_config", true}});
}

TEST_CASE("configs: defaults, nulls, and both spellings of the rotary parameters") {
  const auto changed = [](const char* architecture, const json& changes) {
    json j = json::parse(config_json(small_config(architecture), -1));
    for (auto& [key, value] : changes.items()) {
      if (value == "absent") {
        j.erase(key);
      } else {
        j[key] = value;
      }
    }
    return parse_config(j.dump(), "c.json");
  };
  CHECK(changed("llama", {{"num_key_value_heads", nullptr}, {"head_dim", nullptr}}).kv_heads == 4);
  CHECK(changed("llama", {{"head_dim", "absent"}}).head_size == 6);
  CHECK(changed("llama", {{"tie_word_embeddings", "absent"}}).tied_head == false);
  CHECK(changed("gpt2", {{"n_inner", nullptr}}).hidden == 96);
  CHECK(changed("gpt2", {{"tie_word_embeddings", "absent"}}).tied_head);
  CHECK(changed("gpt2", {{"tie_word_embeddings", false}}).tied_head == false);
  CHECK(changed("gpt2", {{"n_positions", "absent"}, {"n_ctx", 77}}).context == 77);
  CHECK(changed("llama", {{"rope_theta", "absent"}}).rope_theta == 10000);
  CHECK(changed("llama", {{"rope_theta", 5e5}}).rope_theta == 5e5);
  CHECK(changed("qwen3", {{"rope_theta", "absent"},
                          {"rope_scaling", "absent"},
                          {"rope_parameters", {{"rope_theta", 1e6}, {"rope_type", "default"}}}})
            .rope_theta == 1e6);
  CHECK(changed("qwen3", {{"rope_scaling", {{"type", "default"}}}}) == small_config("qwen3"));
  for (const char* place : {"rope_scaling", "rope_parameters"}) {
    const ModelConfig stretched = changed("llama", {{place,
                                                     {{"rope_type", "llama3"},
                                                      {"factor", 8},
                                                      {"low_freq_factor", 1},
                                                      {"high_freq_factor", 4},
                                                      {"original_max_position_embeddings", 8192}}}});
    CHECK(stretched.rope_factor == 8);
    CHECK(stretched.rope_low == 1);
    CHECK(stretched.rope_high == 4);
    CHECK(stretched.rope_original == 8192);
  }

  CHECK(changed("qwen3", {{"head_dim", "absent"}}).head_size == 128);
  CHECK(changed("qwen3", {{"max_position_embeddings", "absent"}}).context == 32768);
  CHECK(changed("llama", {{"max_position_embeddings", "absent"}}).context == 2048);
  CHECK(changed("llama", {{"hidden_size", 24.0}, {"num_attention_heads", 4.0}}) == small_config("llama"));
  for (const char* kind : {"linear", "dynamic"})
    CHECK(changed("llama", {{"rope_scaling", {{"type", kind}, {"factor", 1.0}}}}) == small_config("llama"));
  CHECK(changed("qwen3", {{"use_sliding_window", true}, {"layer_types", {"full_attention"}}}) == small_config("qwen3"));
  const json by_layers = {{"use_sliding_window", true}, {"layer_types", "absent"}, {"sliding_window", 8}};
  json none_slides = by_layers;
  none_slides["max_window_layers"] = 1000;
  CHECK(changed("qwen3", none_slides) == small_config("qwen3"));
  std::string python = config_json(small_config("llama"), -1);
  python.insert(python.find('{') + 1, R"("a \" NaN": NaN, "b": [Infinity, -Infinity, "Infinity"],)");
  CHECK(parse_config(python, "c.json") == small_config("llama"));

  // Scalings, biases and families; each is written such that it is read as the same again.
  const auto read = [&](const char* architecture, const json& changes, const char* type) {
    const ModelConfig c = changed(architecture, changes);
    CHECK(model_type_of(c) == type);
    CHECK(parse_config(config_json(c, -1), "c") == c);
    return c;
  };
  const auto scaled = [](json scaling) { return json{{"max_position_embeddings", 64}, {"rope_scaling", scaling}}; };
  ModelConfig c = read("llama", scaled({{"type", "linear"}, {"factor", 2.0}}), "llama");
  CHECK((c.rope_kind == RopeKind::linear && c.rope_factor == 2));
  c = read("qwen3", scaled({{"rope_type", "dynamic"}, {"factor", 3}}), "qwen3");
  CHECK((c.rope_kind == RopeKind::dynamic && c.rope_factor == 3));
  c = read("llama", scaled({{"rope_type", "yarn"}, {"factor", 4}, {"original_max_position_embeddings", 16}}), "llama");
  CHECK((c.rope_kind == RopeKind::yarn && c.rope_low == 1 && c.rope_high == 32 && c.rope_original == 16));
  CHECK(c.rope_magnitude == doctest::Approx(0.1 * std::log(4.0) + 1));
  c = read("llama", scaled({{"rope_type", "yarn"}, {"factor", nullptr}, {"original_max_position_embeddings", 16}}),
           "llama");
  CHECK(c.rope_factor == 4);
  CHECK(read("llama", {{"attention_bias", true}, {"mlp_bias", true}}, "llama").bias);
  c = read("llama", {{"attention_bias", true}}, "llama");
  CHECK((c.qkv_bias && c.attention_out_bias && !c.mlp_bias && !c.bias));
  CHECK(read("llama", {{"mlp_bias", true}}, "llama").mlp_bias);
  CHECK(read("qwen3", {{"attention_bias", true}}, "qwen3").qkv_bias);
  c = read("llama", {{"model_type", "qwen2"}}, "qwen2");
  CHECK((c.qkv_bias && !c.attention_out_bias && !c.mlp_bias));
  CHECK(read("llama", {{"model_type", "mistral"}, {"sliding_window", nullptr}}, "llama") == small_config("llama"));
  CHECK(read("llama", {{"model_type", "mistral"}, {"sliding_window", 8}}, "llama").context == 8);
  CHECK(read("llama", {{"model_type", "mistral"}, {"max_position_embeddings", "absent"}}, "llama").context == 4096);
  CHECK(read("llama", {{"model_type", "phi3"}, {"rms_norm_eps", "absent"}}, "llama").norm_epsilon == 1e-5);
  c = read("llama", {{"model_type", "gemma"}, {"hidden_act", "gelu"}, {"tie_word_embeddings", "absent"}}, "train_gpt");
  CHECK((c.activation == Activation::geglu && c.tied_head && c.embedding_scale == std::sqrt(24.0)));
  CHECK((exported_type_of(c) == "gemma" && parse_config(config_json(c, -1, "gemma"), "c") == c));

  // Phi-1 and Phi-2; longrope, of which Phi-3 has the original context beside it.
  c = read("llama",
           {{"model_type", "phi"}, {"hidden_act", "gelu_new"}, {"partial_rotary_factor", 0.7}, {"head_dim", 6}}, "phi");
  CHECK((c.rotary_size == 4 && c.parallel_block && c.head_bias && c.bias && c.norm == Norm::layernorm && !c.tied_head));
  CHECK(c.norm_epsilon == 1e-5);
  c = read("llama",
           {{"model_type", "phi"},
            {"hidden_act", "gelu_new"},
            {"num_attention_heads", 3},
            {"num_key_value_heads", 3},
            {"head_dim", 8}},
           "phi");
  CHECK(c.rotary_size == 4);
  const auto longrope = [](std::vector<double> near, std::vector<double> far) {
    return json{{"model_type", "phi3"},
                {"max_position_embeddings", 64},
                {"original_max_position_embeddings", 16},
                {"rope_scaling", {{"type", "su"}, {"short_factor", near}, {"long_factor", far}}}};
  };
  c = read("llama", longrope({1, 2, 3}, {1.5, 2, 9.25}), "phi3");
  CHECK((c.rope_kind == RopeKind::longrope && c.rope_original == 16 && c.rope_factor == 4 && c.rope_far[2] == 9.25));
  CHECK(c.rope_magnitude == doctest::Approx(std::sqrt(1 + std::log(4.0) / std::log(16.0))));
  CHECK((c.is_far(17) && !c.is_far(16)));

  json gemma = {{"model_type", "gemma3_text"},
                {"hidden_activation", "gelu_pytorch_tanh"},
                {"head_dim", 6},
                {"hidden_act", "absent"},
                {"query_pre_attn_scalar", 8},
                {"sliding_window", 10}};
  const auto exported = [&](const char* type) {
    const ModelConfig read_config = read("llama", gemma, "train_gpt");
    CHECK(exported_type_of(read_config) == type);
    CHECK(parse_config(config_json(read_config, -1, type), "c") == read_config);
    return read_config;
  };
  c = exported("gemma3_text");
  CHECK((c.qk_norm && c.post_norms && c.global_every == 3 && c.context == 10 && c.rope_local_theta == 10000));
  CHECK(c.rope_magnitude == doctest::Approx(std::pow(6.0 / 8, 0.25)));
  gemma["layer_types"] = {"sliding_attention", "full_attention"}, gemma["rope_local_base_freq"] = 500;
  CHECK((exported("gemma3_text").global_every == 2 && exported("gemma3_text").rope_local_theta == 500));
  gemma["layer_types"] = {"full_attention", "full_attention"};
  CHECK((exported("gemma3_text").global_every == 0 && exported("gemma3_text").context == 16));
  gemma["layer_types"] = "absent", gemma["model_type"] = "gemma2", gemma["attn_logit_softcapping"] = nullptr;
  c = exported("gemma2");
  CHECK((!c.qk_norm && c.post_norms && c.global_every == 0 && c.context == 10 && c.logit_softcap == 30));
  gemma.erase("attn_logit_softcapping");

  const json mixtral = {{"model_type", "mixtral"}, {"num_local_experts", 4}, {"num_experts_per_tok", 3}};
  c = read("llama", mixtral, "mixtral");
  CHECK((c.experts == 4 && c.experts_per_token == 3 && c.hidden == 40 && !c.qk_norm));
  CHECK(parameter_table(c)[6].file_parts[3].name == "model.layers.0.block_sparse_moe.experts.1.w3.weight");
  json moe = {{"model_type", "qwen3_moe"},        {"num_experts", 6},
              {"num_experts_per_tok", 2},         {"norm_topk_prob", true},
              {"mlp_only_layers", json::array()}, {"moe_intermediate_size", 12}};
  c = read("qwen3", moe, "qwen3_moe");
  CHECK((c.experts == 6 && c.experts_per_token == 2 && c.hidden == 12 && c.qk_norm));
  CHECK(parameter_table(c)[9].file_parts[5].name == "model.layers.0.mlp.experts.5.down_proj.weight");
  c.shared_hidden = 8, c.router_bias = true;  // no class of transformers has these
  CHECK(model_type_of(c) == "train_gpt");
  CHECK(parse_config(config_json(c, -1), "c") == c);

  const auto refused = [&](const char* architecture, const json& changes, const std::string& expected) {
    const std::string message = error_of([&] { changed(architecture, changes); });
    CAPTURE(message);
    CHECK(has(message, "c.json: "));
    CHECK(has(message, expected));
  };
  refused("llama", {{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}}}}, "\"low_freq_factor\" is missing");
  refused("llama", {{"rope_scaling", {{"rope_type", "yarn"}}}}, R"("factor" is missing)");
  refused("llama", {{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 2}, {"truncate", false}}}}, "\"truncate\"");
  refused("llama", {{"rope_scaling", {{"rope_type", "longrope"}}}}, R"("short_factor" is missing)");
  refused("llama", longrope({1, 2}, {1, 2, 3}), R"("short_factor" has 2 numbers for 3 pairs of channels)");
  refused("llama", longrope({1, 2, 0}, {1, 2, 3}), "cannot be divided by 0");
  refused("llama", {{"rope_scaling", {{"rope_type", "proportional"}}}}, R"("rope_type": "proportional" is not)");
  refused("llama", {{"quantization_config", {{"quant_method", "gptq"}, {"bits", 4}}}},
          "weights quantized by gptq are not read");
  json phi = {{"model_type", "phi"}, {"hidden_act", "gelu_new"}, {"partial_rotary_factor", 0.5}};
  refused("llama", phi, "even head size, not 3");
  phi["partial_rotary_factor"] = 1.5;
  refused("llama", phi, R"("partial_rotary_factor" is 1.5)");
  phi["partial_rotary_factor"] = 0.5, phi["qk_layernorm"] = true;
  refused("llama", phi, "\"qk_layernorm\"");
  gemma["model_type"] = "gemma2", gemma["final_logit_softcapping"] = nullptr;
  refused("llama", gemma, R"("attn_logit_softcapping": 50 is not supported)");  // the usual one
  gemma["attn_logit_softcapping"] = nullptr, gemma["layer_types"] = {"full_attention"};
  refused("llama", gemma, R"("layer_types" is not a list of 2 layers)");
  gemma["layer_types"] = {"full_attention", "sliding_attention"};
  refused("llama", gemma, R"("layer_types": "sliding_attention" in layer 1)");
  refused("llama", {{"partial_rotary_factor", 0.5}}, "\"partial_rotary_factor\"");
  refused("llama", {{"rope_scaling", {{"type", "linear"}}}}, R"("factor" is missing)");
  moe["norm_topk_prob"] = false;
  refused("qwen3", moe, "\"norm_topk_prob\"");
  moe["norm_topk_prob"] = true, moe["mlp_only_layers"] = {1};
  refused("qwen3", moe, "\"mlp_only_layers\"");
  moe["mlp_only_layers"] = json::array(), moe["decoder_sparse_step"] = 2;
  refused("qwen3", moe, "\"decoder_sparse_step\"");
  refused("llama", {{"model_type", "mixtral"}, {"num_experts_per_tok", 9}}, "experts-per-token");
  refused("llama", {{"hidden_act", "gelu"}}, "\"hidden_act\": \"gelu\" is not supported; supported: silu");
  refused("gpt2", {{"activation_function", "gelu"}}, "gelu_new");
  refused("gpt2", {{"n_head", 5}}, "not a multiple");
  refused("gpt2", {{"n_embd", 1ll << 40}, {"n_head", 1}}, "cannot be");
  json first_slides = by_layers;
  first_slides["max_window_layers"] = 0;
  refused("qwen3", first_slides, "use_sliding_window");
  refused("llama", {{"hidden_size", 24.5}}, "\"hidden_size\" is not a count: 24.5");
  python = config_json(small_config("llama"), -1);
  python.replace(python.find("\"rms_norm_eps\": ") + 16, 5, "NaN,\"x\":1");
  CHECK(has(error_of([&] { parse_config(python, "c.json"); }), "\"rms_norm_eps\" is not a number: \"NaN\""));
  refused("qwen3", {{"layer_types", {"sliding_attention"}}}, "sliding_attention");
  refused("qwen3", {{"hidden_size", "absent"}}, "\"hidden_size\" is missing");
  refused("qwen3", {{"hidden_size", -5}}, "\"hidden_size\" is not a count: -5");
  refused("qwen3", {{"hidden_size", "5"}}, "not a count");
  refused("qwen3", {{"hidden_size", {5}}}, "not a count: a list");
  refused("qwen3", {{"num_key_value_heads", 3}}, "not a multiple");
  refused("qwen3", {{"num_attention_heads", 0}}, "not a multiple");
  refused("qwen3", {{"num_hidden_layers", 1 << 23}}, "layers");
  refused("qwen3", {{"hidden_size", 1 << 24}, {"vocab_size", 1 << 24}}, "2^40");
  refused("qwen3", {{"rms_norm_eps", 0}}, "epsilon");
  refused("qwen3", {{"model_type", "mamba"}}, "\"model_type\": \"mamba\" is not supported");
  refused("train_gpt", {{"norm", "batchnorm"}}, "batchnorm");
  refused("train_gpt", {{"qk_norm", 1}}, "\"qk_norm\" is not true or false");
  CHECK(has(error_of([] { parse_config("{", "c"); }), "c: not JSON"));
  CHECK(has(error_of([] { parse_config("[]", "c"); }), "c: not a JSON object"));
  CHECK(has(error_of([] { read_config("/nonexistent"); }), "/nonexistent: No such file"));
}

TEST_CASE("weights: saved and loaded bit for bit, with Hugging Face's shapes and transposes") {
  const Folder folder;
  for (const char* name : {"gpt2", "llama", "qwen3", "train_gpt"}) {
    CAPTURE(name);
    const ModelConfig config = small_config(name);
    const auto table = parameter_table(config);
    const auto weights = random_weights(table);
    save(folder / "model.safetensors", table, weights);
    CHECK(load(folder.path, table) == weights);
    CHECK(load(folder / "model.safetensors", table) == weights);
  }

  // GPT-2: V 29, T 16, C 24, F 40; Conv1D's matrices are (in, out).
  auto table = parameter_table(small_config("gpt2"));
  auto weights = random_weights(table);
  save(folder / "gpt2.safetensors", table, weights);
  const auto weight = [&](const std::string& name) -> const std::vector<float>& {
    for (size_t i = 0; i < table.size(); ++i)
      if (table[i].name == name) return weights[i];
    throw Error("no parameter " + name);
  };
  const SafetensorsFile gpt2(folder / "gpt2.safetensors");
  const std::map<std::string, std::vector<int64_t>> gpt2_shapes = {{"ln_1.weight", {24}},
                                                                   {"ln_1.bias", {24}},
                                                                   {"ln_2.weight", {24}},
                                                                   {"ln_2.bias", {24}},
                                                                   {"attn.c_attn.bias", {72}},
                                                                   {"attn.c_proj.bias", {24}},
                                                                   {"attn.c_attn.weight", {24, 72}},
                                                                   {"mlp.c_fc.bias", {40}},
                                                                   {"mlp.c_proj.bias", {24}},
                                                                   {"attn.c_proj.weight", {24, 24}},
                                                                   {"mlp.c_fc.weight", {24, 40}},
                                                                   {"mlp.c_proj.weight", {40, 24}}};
  CHECK(gpt2.tensors().size() == 2 + 2 * gpt2_shapes.size() + 2);
  CHECK(gpt2.tensor("transformer.wte.weight").shape == std::vector<int64_t>{29, 24});
  CHECK(gpt2.tensor("transformer.wpe.weight").shape == std::vector<int64_t>{16, 24});
  for (const std::string layer : {"transformer.h.0.", "transformer.h.1."})
    for (auto& [name, shape] : gpt2_shapes) CHECK(gpt2.tensor(layer + name).shape == shape);
  // A square matrix, whose missing transpose no check of shapes would find.
  std::vector<float> stored(24 * 24);
  read_floats(gpt2.tensor("transformer.h.1.attn.c_proj.weight"), 0, stored);
  CHECK(stored[3 * 24 + 5] == weight("layers.1.attention_out.weight")[5 * 24 + 3]);

  // Qwen3: H D = 32, K D = 16, F 40; rows of one matrix are split among files' tensors.
  table = parameter_table(small_config("qwen3"));
  weights = random_weights(table);
  save(folder / "qwen3.safetensors", table, weights);
  const SafetensorsFile qwen3(folder / "qwen3.safetensors");
  const std::map<std::string, std::vector<int64_t>> qwen3_shapes = {
      {"input_layernorm.weight", {24}},      {"post_attention_layernorm.weight", {24}},
      {"self_attn.q_proj.weight", {32, 24}}, {"self_attn.k_proj.weight", {16, 24}},
      {"self_attn.v_proj.weight", {16, 24}}, {"self_attn.o_proj.weight", {24, 32}},
      {"self_attn.q_norm.weight", {8}},      {"self_attn.k_norm.weight", {8}},
      {"mlp.gate_proj.weight", {40, 24}},    {"mlp.up_proj.weight", {40, 24}},
      {"mlp.down_proj.weight", {24, 40}}};
  CHECK(qwen3.tensors().size() == 2 + 2 * qwen3_shapes.size());
  for (const std::string layer : {"model.layers.0.", "model.layers.1."})
    for (auto& [name, shape] : qwen3_shapes) CHECK(qwen3.tensor(layer + name).shape == shape);
  float x = 0;
  read_floats(qwen3.tensor("model.layers.0.self_attn.v_proj.weight"), 2 * 24 + 7, {&x, 1});
  CHECK(x == weight("layers.0.qkv.weight")[(32 + 16 + 2) * 24 + 7]);
  read_floats(qwen3.tensor("model.layers.1.mlp.up_proj.weight"), 5, {&x, 1});
  CHECK(x == weight("layers.1.mlp_in.weight")[40 * 24 + 5]);

  table = parameter_table(small_config("llama"));
  save(folder / "llama.safetensors", table, random_weights(table));
  CHECK(SafetensorsFile(folder / "llama.safetensors").tensor("lm_head.weight").shape == std::vector<int64_t>{29, 24});
}

TEST_CASE("weights: files of other writers") {
  const Folder folder;
  auto table = parameter_table(small_config("gpt2"));
  auto weights = random_weights(table);
  save(folder / "model.safetensors", table, weights);
  const auto tensors = raw_tensors(folder / "model.safetensors");

  SUBCASE("no prefix, and the buffers that old versions saved") {
    std::map<std::string, Raw> bare;
    for (auto& [name, t] : tensors) bare[name.substr(std::strlen("transformer."))] = t;
    bare["h.0.attn.bias"] = {"U8", std::string(256, '\1'), {1, 1, 16, 16}};
    bare["h.0.attn.masked_bias"] = {"F4", "abcd", {8}};
    write_raw(folder / "bare.safetensors", bare);
    CHECK(load(folder / "bare.safetensors", table) == weights);
  }
  SUBCASE("a base model of Llama's kind, without its prefix") {
    ModelConfig config = small_config("llama");
    config.tied_head = true;
    const auto llama = parameter_table(config);
    const auto values = random_weights(llama);
    save(folder / "llama.safetensors", llama, values);
    std::map<std::string, Raw> bare;
    for (auto& [name, t] : raw_tensors(folder / "llama.safetensors")) bare[name.substr(std::strlen("model."))] = t;
    write_raw(folder / "bare.safetensors", bare);
    CHECK(load(folder / "bare.safetensors", llama) == values);
  }
  SUBCASE("weights that are not finite") {
    auto bad = tensors;
    std::string& bytes = bad.at("transformer.wpe.weight").bytes;
    for (const size_t i : {3, 9}) std::memcpy(bytes.data() + 4 * i, "\0\0\xc0\x7f", 4);
    write_raw(folder / "bad.safetensors", bad);
    CHECK(has(error_of([&] { load(folder / "bad.safetensors", table); }), "2 of the "));
    CHECK(has(error_of([&] { load(folder / "bad.safetensors", table); }), "are not finite"));
  }
  SUBCASE("a tied head that was stored all the same") {
    auto tied = tensors;
    tied["lm_head.weight"] = tied.at("transformer.wte.weight");
    write_raw(folder / "tied.safetensors", tied);
    CHECK(load(folder / "tied.safetensors", table) == weights);
    tied["lm_head.weight"].bytes[3] ^= 1;
    write_raw(folder / "tied.safetensors", tied);
    CHECK(has(error_of([&] { load(folder / "tied.safetensors", table); }), "lm_head.weight"));
  }
  SUBCASE("bf16") {
    auto narrow = tensors;
    for (auto& [name, t] : narrow) {
      std::string half;
      for (size_t i = 0; i < t.bytes.size(); i += 4) half += t.bytes.substr(i + 2, 2);
      t = {"BF16", half, t.shape};
    }
    write_raw(folder / "narrow.safetensors", narrow);
    for (auto& w : weights)
      for (float& x : w) x = std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0xffff0000u);
    CHECK(load(folder / "narrow.safetensors", table) == weights);
  }
  SUBCASE("shards") {
    std::map<std::string, Raw> parts[2];
    json map;
    int i = 0;
    for (auto& [name, t] : tensors) {
      const int part = i++ % 2;
      parts[part][name] = t;
      map[name] = "part-" + std::to_string(part) + ".safetensors";
    }
    fs::remove(folder / "model.safetensors");
    for (int part : {0, 1}) write_raw(folder / ("part-" + std::to_string(part) + ".safetensors"), parts[part]);
    const std::string index = folder / "model.safetensors.index.json";
    write_file_atomically(index, json{{"metadata", {{"total_size", 1}}}, {"weight_map", map}}.dump());
    CHECK(load(folder.path, table) == weights);

    map["transformer.wte.weight"] = "../part-0.safetensors";
    write_file_atomically(index, json{{"weight_map", map}}.dump());
    CHECK(has(error_of([&] { load(folder.path, table); }), "not the name of a file"));
    map["transformer.wte.weight"] = "part-2.safetensors";
    write_file_atomically(index, json{{"weight_map", map}}.dump());
    CHECK(has(error_of([&] { load(folder.path, table); }), "part-2.safetensors: No such file"));
    fs::copy(folder / "part-0.safetensors", folder / "part-2.safetensors");
    CHECK(has(error_of([&] { load(folder.path, table); }), "in an earlier shard"));
    fs::remove(folder / "part-2.safetensors");
    map["transformer.wte.weight"] = "part-1.safetensors", map["ghost"] = "part-0.safetensors";
    write_file_atomically(index, json{{"weight_map", map}}.dump());
    CHECK(has(error_of([&] { load(folder.path, table); }), "tensor \"ghost\" is not in \"part-0.safetensors\""));
    write_file_atomically(index, "{}");
    CHECK(has(error_of([&] { load(folder.path, table); }), "weight_map"));
  }
  SUBCASE("missing, unexpected, misshapen, not floating point: all are listed before anything is loaded") {
    auto wrong = tensors;
    wrong.erase("transformer.ln_f.bias");
    wrong["transformer.h.2.ln_1.bias"] = {"F32", "abcd", {1}};
    wrong["transformer.h.0.attn.c_attn.weight"].shape = {72, 24};
    wrong["transformer.wpe.weight"].dtype = "I32";
    write_raw(folder / "wrong.safetensors", wrong);
    const std::string message = error_of(
        [&] { load_parameters(folder / "wrong.safetensors", table, [](size_t) -> float* { throw Error("called"); }); });
    CAPTURE(message);
    CHECK(has(message, "missing tensors: transformer.ln_f.bias"));
    CHECK(has(message, "unexpected tensors: \"transformer.h.2.ln_1.bias\""));
    CHECK(has(message, "transformer.h.0.attn.c_attn.weight is (72, 24), not (24, 72)"));
    CHECK(has(message, "transformer.wpe.weight is I32"));
    CHECK(has(error_of([&] { load(folder / "wrong.safetensors", parameter_table(small_config("llama"))); }), "more"));
    fs::remove(folder / "model.safetensors");
    CHECK(has(error_of([&] { load(folder.path, table); }), "neither model.safetensors nor"));
    CHECK(!has(error_of([&] { load(folder.path, table); }), "pytorch_model.bin"));
    write_file_atomically(folder / "pytorch_model.bin", "x");
    CHECK(has(error_of([&] { load(folder.path, table); }), "only pytorch_model.bin"));
  }
}
