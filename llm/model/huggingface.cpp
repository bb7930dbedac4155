#include "llm/model/huggingface.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <set>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/base/simd.h"
#include "llm/model/safetensors.h"

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

// Reads rope_theta and the optional rope_scaling beside it; transformers 5 has both in rope_parameters.
void read_rope(const Keys& keys, ModelConfig& c) {
  c.rope_theta = keys.number("rope_theta", 10000);
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!keys.has(name)) continue;
    const Keys rope = keys.object(name);
    const char* const key = rope.has("rope_type") ? "rope_type" : "type";  // "type" is the older spelling
    const std::string type = rope.text(key, "default");
    const bool by_one = (type == "linear" || type == "dynamic") && rope.number("factor") == 1;
    if (!by_one) rope.require(key, {"default", "none", "llama3"});
    if (type == "llama3") {
      ModelConfig scaled = c;
      scaled.rope_factor = rope.number("factor");
      scaled.rope_low = rope.number("low_freq_factor");
      scaled.rope_high = rope.number("high_freq_factor");
      scaled.rope_original = rope.count("original_max_position_embeddings");
      if (scaled.rope_factor != 1) c = scaled;  // a factor of 1 stretches nothing
    }
    if (rope.number("partial_rotary_factor", 1) != 1)
      fail(keys.path(), ": \"partial_rotary_factor\" is not supported: all of a head is rotated");
    c.rope_theta = rope.number("rope_theta", c.rope_theta);
  }
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

// Keys that a file lacks have the values that transformers gives them for the family.
ModelConfig read_llama(const Keys& keys, bool qwen3) {
  ModelConfig c;
  set_architecture(c, qwen3 ? Architecture::qwen3 : Architecture::llama);
  c.vocabulary = keys.count("vocab_size");
  c.context = keys.count("max_position_embeddings", qwen3 ? 32768 : 2048);
  c.channels = keys.count("hidden_size");
  c.hidden = keys.count("intermediate_size");
  c.layers = keys.count("num_hidden_layers");
  c.heads = keys.count("num_attention_heads");
  c.kv_heads = keys.count("num_key_value_heads", c.heads);
  if (c.heads < 1 || c.kv_heads < 1 || c.heads % c.kv_heads)
    fail(keys.path(), ": \"num_attention_heads\" ", c.heads, " is not a multiple of \"num_key_value_heads\" ",
         c.kv_heads);
  if (!qwen3 && !keys.has("head_dim") && c.channels % c.heads)
    fail(keys.path(), ": \"hidden_size\" ", c.channels, " is not a multiple of \"num_attention_heads\" ", c.heads);
  c.head_size = keys.count("head_dim", qwen3 ? 128 : c.channels / c.heads);
  c.norm_epsilon = keys.number("rms_norm_eps", 1e-6);
  read_rope(keys, c);
  c.tied_head = keys.flag("tie_word_embeddings", false);
  keys.require("hidden_act", {"silu", "swish"});
  keys.require("attention_bias", false, "a model without biases has none in its attention");
  keys.require("mlp_bias", false, "a model without biases has none in its MLP");
  // A window may be switched on for the layers from max_window_layers on, of which there may be none; layer_types says which.
  if (keys.has("layer_types")) {
    for (const Json& type : keys.at("layer_types"))
      if (type != "full_attention") fail(keys.path(), ": \"layer_types\": ", described(type), " is not supported");
  } else if (keys.count("max_window_layers", qwen3 ? 28 : 0) < c.layers &&
             (!keys.has("sliding_window") || keys.count("sliding_window") < c.context)) {
    keys.require("use_sliding_window", false, "attention reaches over the whole context");
  }
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
  c.norm = keys.value<Norm>("norm");
  c.positions = keys.value<Positions>("positions");
  c.activation = keys.value<Activation>("activation");
  c.qk_norm = keys.flag("qk_norm");
  c.bias = keys.flag("bias");
  c.tied_head = keys.flag("tied_head");
  c.logit_softcap = keys.number("logit_softcap", 0);
  c.norm_epsilon = keys.number("norm_epsilon");
  c.rope_theta = keys.number("rope_theta", c.rope_theta);
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
  if (std::max({c.vocabulary, c.context, c.qkv_width(), 2 * c.hidden}) > limit / c.channels)
    fail(path, ": the model's sizes make a matrix of more than 2^40 elements");
}

Json token_ids(const EndTokens& tokens) {
  const Json bos = tokens.bos < 0 ? Json() : Json(tokens.bos);
  if (tokens.eos.empty()) return {{"bos_token_id", bos}, {"eos_token_id", nullptr}};
  return {{"bos_token_id", bos}, {"eos_token_id", tokens.eos.size() == 1 ? Json(tokens.eos[0]) : Json(tokens.eos)}};
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

std::vector<int64_t> dims(const Shape& shape) {
  std::vector<int64_t> result;
  for (int i = 0; i < shape.rank(); ++i) result.push_back(shape[i]);
  return result;
}

// Finds a tensor by its name, which may lack the prefix: a base model, which has no head, has none. nullptr: there is none.
const SafetensorsEntry* find_tensor(const ShardedSafetensors& weights, const std::string& name,
                                    std::string& name_in_file) {
  name_in_file = name;
  auto found = weights.tensors().find(name);
  for (const std::string_view prefix : {"transformer.", "model."})
    if (found == weights.tensors().end() && name.starts_with(prefix)) {
      name_in_file = name.substr(prefix.size());
      found = weights.tensors().find(name_in_file);
    }
  return found == weights.tensors().end() ? nullptr : &found->second;
}

// Constants that older versions of transformers saved along with the weights: the causal mask, rotary frequencies.
bool is_buffer(const std::string& name) {
  return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") || name.ends_with(".rotary_emb.inv_freq");
}

// Appends the first five items, and how many more there are.
void append_list(std::string& message, const char* title, const std::vector<std::string>& items) {
  if (items.empty()) return;
  message += (message.empty() ? "" : "; ") + std::string(title);
  for (size_t i = 0; i < std::min<size_t>(5, items.size()); ++i) message += (i ? ", " : " ") + items[i];
  if (items.size() > 5) message += concat(" and ", items.size() - 5, " more");
}

using Found = std::vector<std::vector<const SafetensorsEntry*>>;  // [parameter][part]

Found find_parts(const ShardedSafetensors& weights, const std::vector<Parameter>& table) {
  Found found;
  std::vector<std::string> missing, unexpected, misshapen, unreadable;
  std::set<std::string> used;
  for (const Parameter& p : table) {
    auto& parts = found.emplace_back();
    for (const FilePart& part : p.file_parts) {
      std::string name;
      const SafetensorsEntry* entry = find_tensor(weights, part.name, name);
      parts.push_back(entry);
      used.insert(name);
      if (!entry) {
        missing.push_back(part.name);
      } else if (entry->shape != dims(part.shape)) {
        misshapen.push_back(concat(name, " is ", shape_text(entry->shape), ", not ", part.shape.text()));
      } else if (!is_floating(*entry)) {
        unreadable.push_back(concat(name, " is ", entry->dtype));
      }
    }
  }
  // Some writers store the head although it is tied.
  const auto head = weights.tensors().find("lm_head.weight");
  if (head != weights.tensors().end() && used.insert("lm_head.weight").second && !table.empty() && found[0][0]) {
    const auto bytes = head->second.bytes, embedding = found[0][0]->bytes;
    if (!std::equal(bytes.begin(), bytes.end(), embedding.begin(), embedding.end()))
      unexpected.push_back("lm_head.weight (the config says that the head is the embedding, but they differ)");
  }
  for (auto& [name, entry] : weights.tensors())
    if (!used.contains(name) && !is_buffer(name)) unexpected.push_back(described(name));

  std::string message;
  append_list(message, "missing tensors:", missing);
  append_list(message, "unexpected tensors:", unexpected);
  append_list(message, "wrong shapes:", misshapen);
  append_list(message, "not floating point:", unreadable);
  if (!message.empty()) fail(weights.path(), ": the weights are not those of the config: ", message);
  return found;
}

// The element of the parameter at which a part begins.
int64_t offset_of(const Parameter& p, const FilePart& part) {
  return p.shape.rank() < 2 ? part.first_row : part.first_row * p.shape.last();
}

void read_part(const SafetensorsEntry& entry, const Parameter& p, const FilePart& part, float* parameter) {
  float* to = parameter + offset_of(p, part);
  if (!part.transposed) return read_floats(entry, 0, {to, static_cast<size_t>(entry.elements())});
  // The file's rows, a block at a time, become columns of the parameter (rows, columns).
  const int64_t columns = part.shape[0], rows = part.shape[1];
  const int64_t block = std::max<int64_t>(1, (int64_t{1} << 18) / std::max<int64_t>(1, rows));
  std::vector<float> buffer(static_cast<size_t>(std::min(block, columns) * rows));
  for (int64_t c0 = 0; c0 < columns; c0 += block) {
    const int64_t count = std::min(block, columns - c0);
    read_floats(entry, c0 * rows, {buffer.data(), static_cast<size_t>(count * rows)});
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < count; ++c) to[r * columns + c0 + c] = buffer[static_cast<size_t>(c * rows + r)];
  }
}

// By whole vectors: every weight of a model passes here whenever it is loaded. x - x is 0, but NaN where x is not finite.
bool all_finite(const float* values, int64_t count) {
  simd::Vec sum = {};
  int64_t i = 0;
  for (; i + simd::kLanes <= count; i += simd::kLanes) sum += simd::load(values + i) - simd::load(values + i);
  if (i < count) sum += simd::load_part(values + i, count - i) - simd::load_part(values + i, count - i);
  return simd::reduce_add(sum) == 0;
}

}  // namespace

ModelConfig parse_config(const std::string& text, const std::string& path) {
  const Json values = parse_json(text, path, {.python_numbers = true});
  if (!values.is_object()) fail(path, ": not a JSON object");
  const Keys keys(values, path);
  const std::string type = keys.text("model_type");
  keys.require("model_type", {"gpt2", "llama", "qwen3", "train_gpt"});
  try {
    const ModelConfig config = type == "gpt2"        ? read_gpt2(keys)
                               : type == "train_gpt" ? read_own(keys)
                                                     : read_llama(keys, type == "qwen3");
    config.check();
    check_size(config, path);
    return config;
  } catch (const UsageError& e) {  // check() says what is wrong as with a command line; here it is a file
    fail(path, ": ", e.what());
  }
}

ModelConfig read_config(const std::string& path) {
  std::error_code error;
  const std::string file = fs::is_directory(path, error) ? path + "/config.json" : path;
  return parse_config(read_file(file), file);
}

EndTokens read_end_tokens(const std::string& directory) {
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
    if (c.logit_softcap > 0) j["logit_softcap"] = c.logit_softcap;
    if (c.rope_factor != 1)
      j.update({{"rope_factor", c.rope_factor},
                {"rope_low", c.rope_low},
                {"rope_high", c.rope_high},
                {"rope_original", c.rope_original}});
  } else {
    const bool qwen3 = type == "qwen3";
    j = {{"architectures", {qwen3 ? "Qwen3ForCausalLM" : "LlamaForCausalLM"}},
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
         {"rope_scaling", c.rope_factor == 1 ? Json()
                                             : Json{{"rope_type", "llama3"},
                                                    {"factor", c.rope_factor},
                                                    {"low_freq_factor", c.rope_low},
                                                    {"high_freq_factor", c.rope_high},
                                                    {"original_max_position_embeddings", c.rope_original}}},
         {"attention_bias", false},
         {"attention_dropout", 0.0},
         {"initializer_range", 0.02},
         {"use_cache", true}};
    if (qwen3) {
      j["use_sliding_window"] = false;
      j["sliding_window"] = nullptr;
      j["max_window_layers"] = c.layers;
      j["layer_types"] = std::vector<std::string>(static_cast<size_t>(c.layers), "full_attention");
    } else {
      j["mlp_bias"] = false;
    }
  }
  j.update(token_ids(tokens));
  if (type != "train_gpt") j["tie_word_embeddings"] = c.tied_head;
  j["torch_dtype"] = "float32";
  return json_text(j);
}

std::string generation_config_json(const EndTokens& tokens) {
  Json j = token_ids(tokens);
  j["_from_model_config"] = true;
  return json_text(j);
}

void load_parameters(const std::string& path, const std::vector<Parameter>& table,
                     const std::function<float*(size_t index)>& destination) {
  const ShardedSafetensors weights(path);
  const Found found = find_parts(weights, table);
  for (size_t i = 0; i < table.size(); ++i) {
    float* parameter = destination(i);
    for (size_t k = 0; k < found[i].size(); ++k) read_part(*found[i][k], table[i], table[i].file_parts[k], parameter);
    const int64_t elements = table[i].shape.elements();
    if (all_finite(parameter, elements)) continue;
    const auto bad = std::count_if(parameter, parameter + elements, [](float w) { return !std::isfinite(w); });
    fail(weights.path(), ": ", bad, " of the ", elements, " weights of ", table[i].name,
         " are not finite, so no logits would be: the file is damaged, or its training diverged");
  }
}

void save_parameters(const std::string& path, const std::vector<Parameter>& table,
                     const std::function<const float*(size_t index)>& source) {
  struct Piece {
    size_t parameter;
    int64_t offset;
  };
  std::vector<FloatTensor> tensors;
  std::vector<Piece> pieces;
  for (size_t i = 0; i < table.size(); ++i) {
    for (const FilePart& part : table[i].file_parts) {
      tensors.push_back({part.name, dims(part.shape), part.transposed});
      pieces.push_back({i, offset_of(table[i], part)});
    }
  }
  const float* data = nullptr;
  write_safetensors(path, tensors, [&](size_t i) {
    if (i == 0 || pieces[i].parameter != pieces[i - 1].parameter) data = source(pieces[i].parameter);
    return data + pieces[i].offset;
  });
}

}  // namespace llm
