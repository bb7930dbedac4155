#include "llm/model/gguf_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numbers>
#include <set>

#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/base/quantize_blocks.h"
#include "llm/ops/rope_frequency.h"

namespace llm {
namespace {

namespace fs = std::filesystem;

constexpr char kFrequencies[] = "rope_freqs.weight";

// Parts of Hugging Face's names and of GGUF's, "blk.N." being "model.layers.N." or "transformer.h.N.".
struct Name {
  const char *here, *there;
};
constexpr Name kWhole[] = {{"model.embed_tokens.", "token_embd."},
                           {"model.norm.", "output_norm."},
                           {"lm_head.", "output."},
                           {"transformer.wte.", "token_embd."},
                           {"transformer.wpe.", "position_embd."},
                           {"transformer.ln_f.", "output_norm."}};
constexpr Name kInLayer[] = {{"input_layernorm.", "attn_norm."},
                             {"self_attn.q_proj.", "attn_q."},
                             {"self_attn.k_proj.", "attn_k."},
                             {"self_attn.v_proj.", "attn_v."},
                             {"self_attn.o_proj.", "attn_output."},
                             {"self_attn.q_norm.", "attn_q_norm."},
                             {"self_attn.k_norm.", "attn_k_norm."},
                             {"post_attention_layernorm.", "ffn_norm."},
                             {"mlp.gate_proj.", "ffn_gate."},
                             {"mlp.up_proj.", "ffn_up."},
                             {"mlp.down_proj.", "ffn_down."},
                             {"ln_1.", "attn_norm."},
                             {"attn.c_attn.", "attn_qkv."},
                             {"attn.c_proj.", "attn_output."},
                             {"ln_2.", "ffn_norm."},
                             {"mlp.c_fc.", "ffn_up."},
                             {"mlp.c_proj.", "ffn_down."}};

std::string gguf_name(const std::string& name) {
  for (const Name& n : kWhole)
    if (name.starts_with(n.here)) return n.there + name.substr(std::strlen(n.here));
  for (const char* layers : {"model.layers.", "transformer.h."}) {
    if (!name.starts_with(layers)) continue;
    const size_t begin = std::strlen(layers), end = name.find('.', begin);
    const std::string rest = name.substr(end + 1);
    for (const Name& n : kInLayer)
      if (rest.starts_with(n.here))
        return concat("blk.", name.substr(begin, end - begin), ".", n.there, rest.substr(std::strlen(n.here)));
  }
  fail("GGUF has no name for the tensor ", name);
}

// The shape of a part in the file: (out, in), also where Hugging Face's file has its transpose.
std::vector<int64_t> shape_of(const FilePart& part) {
  std::vector<int64_t> shape;
  for (int i = 0; i < part.shape.rank(); ++i) shape.push_back(part.shape[i]);
  if (part.transposed) std::reverse(shape.begin(), shape.end());
  return shape;
}

int64_t columns_of(const Parameter& p) { return p.shape.rank() < 2 ? 1 : p.shape.last(); }

// Moves the rows of heads of `size` rows between the two orders of rotary pairs: row `i` and row `i + size / 2` of a head
// here are rows 2 i and 2 i + 1 there.
void reorder_pairs(float* rows, int64_t count, int64_t columns, int64_t size, bool to_neighbours) {
  std::vector<float> head(static_cast<size_t>(size * columns));
  for (float* at = rows; at < rows + count * columns; at += size * columns) {
    std::copy_n(at, size * columns, head.data());
    for (int64_t i = 0; i < size; ++i) {
      const int64_t apart = i % 2 * (size / 2) + i / 2;  // of the pair's row i when they lie side by side
      const int64_t from = to_neighbours ? apart : i, to = to_neighbours ? i : apart;
      std::copy_n(head.data() + from * columns, columns, at + to * columns);
    }
  }
}

bool has_pairs(const std::string& name) {
  return name.find(".attn_q.") != name.npos || name.find(".attn_k.") != name.npos;
}

// What each frequency is divided by, as llama.cpp reads it: (head_size / 2).
std::vector<float> frequency_factors(const ModelConfig& c) {
  const RopeScaling scaling{c.rope_factor,           c.rope_low, c.rope_high, static_cast<double>(c.rope_original), 1,
                            RopeStretch::wavelengths};
  RopeScaling plain = scaling;
  plain.factor = 1;
  std::vector<float> factors;
  const double half = static_cast<double>(c.head_size) / 2;
  for (double i = 0; i < half; ++i)
    factors.push_back(static_cast<float>(rope_frequency(c.rope_theta, i, half, plain) /
                                         rope_frequency(c.rope_theta, i, half, scaling)));
  return factors;
}

// Llama 3's way to stretch frequencies has parameters of which the file holds the effect alone: (head_size / 2) factors. Two
// are the same in all its models; a frequency that is stretched in part tells the original context.
Json scaling_of(const GgufContent& content, const std::vector<float>& factors, ModelConfig c) {
  const double factor = factors.empty() ? 1 : *std::max_element(factors.begin(), factors.end());
  c.rope_low = 1, c.rope_high = 4;
  double original = 0, longest = 0;  // the longest wavelength that is not stretched
  for (size_t i = 0; i < factors.size(); ++i) {
    const double wavelength =
        2 * std::numbers::pi * std::pow(c.rope_theta, 2.0 * static_cast<double>(i) / static_cast<double>(c.head_size));
    const double share = (1.0 / factors[i] - 1 / factor) / (1 - 1 / factor);
    if (share > 1 - 1e-4) longest = std::max(longest, wavelength);
    if (share > 1e-3 && share < 1 - 1e-3) original = wavelength * (c.rope_low + (c.rope_high - c.rope_low) * share);
  }
  if (original == 0) original = std::floor(c.rope_high * longest) + 1;
  c.rope_factor = factor, c.rope_original = static_cast<int64_t>(std::clamp(std::nearbyint(original), 1.0, 1e9));
  const std::vector<float> expected = frequency_factors(c);
  bool same = factors.size() == expected.size();
  for (size_t i = 0; same && i < factors.size(); ++i) same = std::fabs(factors[i] - expected[i]) <= 1e-3f * expected[i];
  if (!same) fail(content.path, ": ", kFrequencies, " is not Llama 3's stretching of rotary frequencies");
  return {{"rope_type", "llama3"},
          {"factor", c.rope_factor},
          {"low_freq_factor", c.rope_low},
          {"high_freq_factor", c.rope_high},
          {"original_max_position_embeddings", c.rope_original}};
}

std::vector<float> floats_of(const GgufTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  read_floats(tensor, values);
  return values;
}

// The keys of a config.json that says the same.
Json llama_keys(const GgufContent& g, const std::string& type, const std::string& in) {
  const auto has = [&](const char* name) { return g.tensors.contains(name); };
  const uint64_t heads = g.whole(in + "attention.head_count"), channels = g.whole(in + "embedding_length");
  const uint64_t usual = heads ? channels / heads : 0, size = g.whole(in + "attention.key_length", usual);
  if (g.whole(in + "attention.value_length", size) != size || g.whole(in + "rope.dimension_count", size) != size)
    fail(g.path, ": heads whose values have another size than keys, or that are rotated in part, are not supported");
  if (g.whole(in + "expert_count", 0) > 0)
    fail(g.path, ": ", in, "expert_count: mixtures of experts are not read from GGUF");
  Json scaling;
  const std::string kind = g.has(in + "rope.scaling.type") ? g.text(in + "rope.scaling.type") : "none";
  if (kind == "linear")
    scaling = {{"rope_type", "linear"}, {"factor", g.number(in + "rope.scaling.factor")}};
  else if (kind != "none")
    fail(g.path, ": ", in, "rope.scaling.type is ", shown(kind), ", which is not read; readable: none and linear");
  const double theta = g.number(in + "rope.freq_base", 10000);
  if (has(kFrequencies)) {
    ModelConfig c;
    c.rope_theta = theta, c.head_size = static_cast<int64_t>(std::min<uint64_t>(size, 1 << 20));
    scaling = scaling_of(g, floats_of(g.tensors.at(kFrequencies)), c);
  }
  const uint64_t context = g.whole(in + "context_length");
  return {{"model_type", type},
          {"hidden_size", channels},
          {"intermediate_size", g.whole(in + "feed_forward_length")},
          {"num_hidden_layers", g.whole(in + "block_count")},
          {"num_attention_heads", heads},
          {"num_key_value_heads", g.whole(in + "attention.head_count_kv", heads)},
          {"head_dim", size},
          {"max_position_embeddings", std::min(context, g.whole(in + "attention.sliding_window", context))},
          {"rms_norm_eps", g.number(in + "attention.layer_norm_rms_epsilon")},
          {"rope_theta", theta},
          {"rope_scaling", scaling},
          {"attention_bias", type != "qwen2" && has("blk.0.attn_q.bias")},
          {"mlp_bias", has("blk.0.ffn_up.bias")},
          {"use_sliding_window", false},
          {"tie_word_embeddings", !has("output.weight")}};
}

Json gpt2_keys(const GgufContent& g, const std::string& in) {
  const uint64_t channels = g.whole(in + "embedding_length");
  // Some writers store the head although it is the embedding.
  const auto head = g.tensors.find("output.weight"), embedding = g.tensors.find("token_embd.weight");
  const bool tied = head == g.tensors.end() || embedding == g.tensors.end() ||
                    std::equal(head->second.bytes.begin(), head->second.bytes.end(), embedding->second.bytes.begin(),
                               embedding->second.bytes.end());
  return {{"model_type", "gpt2"},
          {"n_positions", g.whole(in + "context_length")},
          {"n_embd", channels},
          {"n_layer", g.whole(in + "block_count")},
          {"n_head", g.whole(in + "attention.head_count")},
          {"n_inner", g.whole(in + "feed_forward_length", 4 * std::min<uint64_t>(channels, 1 << 24))},
          {"activation_function", "gelu_new"},
          {"layer_norm_epsilon", g.number(in + "attention.layer_norm_epsilon")},
          {"tie_word_embeddings", tied}};
}

}  // namespace

bool is_gguf(const std::string& path) {
  std::error_code none;
  if (!fs::is_regular_file(path, none)) return false;
  char magic[4] = {};
  std::ifstream(path, std::ios::binary).read(magic, sizeof magic);
  return std::memcmp(magic, "GGUF", sizeof magic) == 0;
}

std::string gguf_of_model(const std::string& path) {
  std::error_code none;
  if (!fs::is_directory(path, none)) return is_gguf(path) ? path : "";
  const std::string inside = path + "/model.gguf";
  return !fs::exists(path + "/config.json", none) && is_gguf(inside) ? inside : "";
}

ModelConfig GgufModel::config() const {
  const GgufContent& g = content_;
  const std::string type = g.text("general.architecture");
  if (type != "llama" && type != "qwen2" && type != "qwen3" && type != "gpt2")
    fail(g.path, ": the architecture ", shown(type), " is not supported; supported: gpt2, llama, qwen2 and qwen3");
  Json keys = type == "gpt2" ? gpt2_keys(g, "gpt2.") : llama_keys(g, type, type + ".");
  const auto embedding = g.tensors.find("token_embd.weight");
  if (embedding == g.tensors.end() || embedding->second.shape.size() != 2)
    fail(g.path, ": no matrix token_embd.weight");
  keys["vocab_size"] = embedding->second.shape[0];
  const ModelConfig config = parse_config(keys.dump(), g.path);
  if (config.layers > static_cast<int64_t>(g.tensors.size()))
    fail(g.path, ": ", config.layers, " layers, but ", g.tensors.size(), " tensors");
  return config;
}

EndTokens GgufModel::end_tokens() const {
  const auto id = [&](const char* key) {
    const uint64_t value = content_.whole(key, ~uint64_t{0});
    return value < uint64_t{1} << 24 ? static_cast<int>(value) : -1;
  };
  EndTokens tokens;
  tokens.bos = id("tokenizer.ggml.bos_token_id");
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"})
    if (const int end = id(key); end >= 0 && std::find(tokens.eos.begin(), tokens.eos.end(), end) == tokens.eos.end())
      tokens.eos.push_back(end);
  return tokens;
}

void GgufModel::load(const std::vector<Parameter>& table,
                     const std::function<float*(size_t index)>& destination) const {
  const std::string type = content_.text("general.architecture");
  const ModelConfig c = config();
  std::set<std::string> used = {kFrequencies};
  for (const Parameter& p : table)
    for (const FilePart& part : p.file_parts) {
      const std::string name = gguf_name(part.name);
      const auto found = content_.tensors.find(name);
      if (found == content_.tensors.end()) fail(content_.path, ": no tensor ", name);
      if (found->second.shape != shape_of(part))
        fail(content_.path, ": tensor ", name, " has ", found->second.elements(), " elements in another shape than ",
             part.shape.text(), part.transposed ? " turned round" : "");
      used.insert(name);
    }
  if (c.tied_head) used.insert("output.weight");
  for (const auto& [name, tensor] : content_.tensors)
    if (!used.contains(name))
      fail(content_.path, ": the tensor ", shown(name), " is not one of the architecture ", type);
  for (size_t i = 0; i < table.size(); ++i) {
    float* const parameter = destination(i);
    const int64_t columns = columns_of(table[i]);
    for (const FilePart& part : table[i].file_parts) {
      const std::string name = gguf_name(part.name);
      float* const to = parameter + part.first_row * columns;
      read_floats(content_.tensors.at(name), {to, static_cast<size_t>(part.rows * columns)});
      if (type == "llama" && has_pairs(name)) reorder_pairs(to, part.rows, columns, c.head_size, false);
    }
    const int64_t elements = table[i].shape.elements();
    if (!std::all_of(parameter, parameter + elements, [](float w) { return std::isfinite(w); }))
      fail(content_.path, ": weights of ", table[i].name, " are not finite: the file is damaged");
  }
}

void save_gguf(const std::string& path, const ModelConfig& c, const std::string& model_name, GgmlType type,
               const GgufFields& fields, const std::vector<Parameter>& table,
               const std::function<const float*(size_t index)>& source) {
  const std::string architecture = model_type_of(c);
  if (c.experts) fail("mixtures of experts are not written to GGUF; --format huggingface writes them");
  if (architecture == "train_gpt" || architecture.starts_with("phi"))
    fail("GGUF has no architecture that combines this model's switches; it has gpt2, llama, qwen2 and qwen3");
  const bool stretched = c.rope_factor != 1;
  if (stretched && c.rope_kind != RopeKind::llama3 && c.rope_kind != RopeKind::linear)
    fail("rotary frequencies stretched as ", name_of(c.rope_kind), " are not written to GGUF; llama3 and linear are");
  GgufFields all;
  const std::string in = architecture + ".";
  const auto whole = [&](const char* key, int64_t value) { all.add(in + key, static_cast<uint32_t>(value)); };
  all.add("general.architecture", architecture);
  all.add("general.name", model_name);
  const uint32_t file_type = type == GgmlType::F32    ? 0
                             : type == GgmlType::F16  ? 1
                             : type == GgmlType::Q4_0 ? 2
                             : type == GgmlType::Q8_0 ? 7
                                                      : 32;
  all.add("general.file_type", file_type);
  all.add("general.quantization_version", uint32_t{2});
  whole("context_length", c.context);
  whole("embedding_length", c.channels);
  whole("block_count", c.layers);
  whole("feed_forward_length", c.hidden);
  whole("attention.head_count", c.heads);
  whole("attention.head_count_kv", c.kv_heads);
  whole("vocab_size", c.vocabulary);
  if (architecture == "gpt2") {
    all.add(in + "attention.layer_norm_epsilon", static_cast<float>(c.norm_epsilon));
  } else {
    all.add(in + "attention.layer_norm_rms_epsilon", static_cast<float>(c.norm_epsilon));
    whole("attention.key_length", c.head_size);
    whole("attention.value_length", c.head_size);
    whole("rope.dimension_count", c.head_size);
    all.add(in + "rope.freq_base", static_cast<float>(c.rope_theta));
    if (stretched && c.rope_kind == RopeKind::linear) {
      all.add(in + "rope.scaling.type", "linear");
      all.add(in + "rope.scaling.factor", static_cast<float>(c.rope_factor));
    }
  }

  struct Place {
    size_t parameter;
    const FilePart* part;
  };
  std::vector<GgufTensorPlan> plans;
  std::vector<Place> places;
  for (size_t i = 0; i < table.size(); ++i)
    for (const FilePart& part : table[i].file_parts) {
      GgufTensorPlan plan{gguf_name(part.name), shape_of(part), GgmlType::F32};
      if (plan.shape.size() == 2 && plan.name != "position_embd.weight") plan.type = type;
      const bool in_blocks = plan.type == GgmlType::Q8_0 || plan.type == GgmlType::Q4_0;
      if (in_blocks && plan.shape.back() % kBlockValues) plan.type = GgmlType::F16;
      plans.push_back(std::move(plan));
      places.push_back({i, &part});
    }
  const std::vector<float> factors =
      stretched && c.rope_kind == RopeKind::llama3 ? frequency_factors(c) : std::vector<float>();
  if (!factors.empty()) plans.push_back({kFrequencies, {c.head_size / 2}, GgmlType::F32});

  all.add_all(fields);
  const float* data = nullptr;
  std::vector<float> reordered;
  write_gguf(path, all, plans, [&](size_t i) -> std::span<const float> {
    if (i == places.size()) return factors;
    const auto& [parameter, part] = places[i];
    if (i == 0 || places[i - 1].parameter != parameter) data = source(parameter);
    const int64_t columns = columns_of(table[parameter]), count = part->rows * columns;
    const float* const from = data + part->first_row * columns;
    if (architecture != "llama" || !has_pairs(plans[i].name)) return {from, static_cast<size_t>(count)};
    reordered.assign(from, from + count);
    reorder_pairs(reordered.data(), part->rows, columns, c.head_size, true);
    return reordered;
  });
}

}  // namespace llm
