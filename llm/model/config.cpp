#include "llm/model/config.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <utility>
#include <vector>

#include "llm/base/error.h"

namespace llm {
namespace {

constexpr Architecture kModern = Architecture::modern, kGpt2 = Architecture::gpt2, kLlama = Architecture::llama,
                       kQwen3 = Architecture::qwen3;
constexpr Preset kPresets[] = {
    // name, also, summary, architecture, layers, heads, kv_heads, channels, head_size, hidden, context, vocabulary, tied
    {"nano", "", "trains in seconds on a laptop", kModern, 2, 2, 2, 64, 32, 192, 64, 0, false},
    {"tiny", "", "0.8M: nanoGPT's CPU setting", kModern, 4, 4, 4, 128, 32, 352, 64, 0, false},
    {"small", "", "10M: nanoGPT's Shakespeare setting", kModern, 6, 6, 6, 384, 64, 1024, 256, 0, false},
    {"gpt2-124M", "gpt2", "GPT-2 small", kGpt2, 12, 12, 12, 768, 64, 3072, 1024, 50257, true},
    {"gpt2-355M", "gpt2-medium", "GPT-2 medium", kGpt2, 24, 16, 16, 1024, 64, 4096, 1024, 50257, true},
    {"gpt2-774M", "gpt2-large", "GPT-2 large", kGpt2, 36, 20, 20, 1280, 64, 5120, 1024, 50257, true},
    {"gpt2-1.5B", "gpt2-xl", "GPT-2 XL", kGpt2, 48, 25, 25, 1600, 64, 6400, 1024, 50257, true},
    {"llama-3.2-1B", "", "Llama 3.2 1B's shape", kLlama, 16, 32, 8, 2048, 64, 8192, 8192, 128256, true},
    {"llama-3.2-3B", "", "Llama 3.2 3B's shape", kLlama, 28, 24, 8, 3072, 128, 8192, 8192, 128256, true},
    {"llama-3.1-8B", "", "Llama 3.1 8B's shape", kLlama, 32, 32, 8, 4096, 128, 14336, 8192, 128256, false},
    {"llama-3.1-70B", "", "Llama 3.1 70B's shape", kLlama, 80, 64, 8, 8192, 128, 28672, 8192, 128256, false},
    {"qwen3-0.6B", "", "Qwen3 0.6B's shape", kQwen3, 28, 16, 8, 1024, 128, 3072, 4096, 151936, true},
    {"qwen3-1.7B", "", "Qwen3 1.7B's shape", kQwen3, 28, 16, 8, 2048, 128, 6144, 4096, 151936, true},
    {"qwen3-4B", "", "Qwen3 4B's shape", kQwen3, 36, 32, 8, 2560, 128, 9728, 4096, 151936, true},
    {"qwen3-8B", "", "Qwen3 8B's shape", kQwen3, 36, 32, 8, 4096, 128, 12288, 4096, 151936, false},
    {"qwen3-14B", "", "Qwen3 14B's shape", kQwen3, 40, 40, 8, 5120, 128, 17408, 4096, 151936, false},
    {"qwen3-32B", "", "Qwen3 32B's shape", kQwen3, 64, 64, 8, 5120, 128, 25600, 4096, 151936, false},
};

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

std::string letters_and_digits(std::string_view name) {
  std::string result = lower(name);
  std::erase_if(result, [](unsigned char c) { return !std::isalnum(c); });
  return result;
}

// How many characters must be put in, taken out or replaced to make `b` of `a` (Levenshtein 1966). Those by which one of
// them goes on where the other ends count a quarter: a part of a name, and a name with more behind it, are near it.
double distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  const auto with_rest = [](size_t wrong, size_t rest) {
    return static_cast<double>(wrong) + 0.25 * static_cast<double>(rest);
  };
  double least = with_rest(b.size(), a.size());
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j)
      diagonal = std::exchange(row[j + 1], std::min({row[j] + 1, row[j + 1] + 1, diagonal + (a[i] != b[j])}));
    least = std::min(least, with_rest(row.back(), a.size() - 1 - i));
  }
  for (size_t j = 0; j < row.size(); ++j) least = std::min(least, with_rest(row[j], b.size() - j));
  return least;
}

}  // namespace

void ModelConfig::check() const {
  const std::pair<const char*, int64_t> counts[] = {
      {"vocabulary", vocabulary}, {"context", context},   {"layers", layers},       {"heads", heads},
      {"kv-heads", kv_heads},     {"channels", channels}, {"head size", head_size}, {"hidden", hidden}};
  for (auto& [name, value] : counts)
    if (value < 1 || value > (int64_t{1} << 24)) fail_usage("the model's ", name, " cannot be ", value);
  if (heads % kv_heads) fail_value("kv-heads", " ", kv_heads, " does not divide heads ", heads);
  if (parallel_block && (post_norms || experts))
    fail_usage("attention and MLP side by side go with neither norms behind them nor experts");
  if (!(logit_softcap >= 0 && logit_softcap < 1e6))
    fail_value("logit-softcap", " must be 0 or more, and below a million, not ", logit_softcap);
  if (!(norm_epsilon > 0 && norm_epsilon < 1)) fail_usage("norm epsilon must lie in (0, 1), not ", norm_epsilon);
  if (!(embedding_scale > 0 && embedding_scale < 1e6)) fail_usage("embeddings cannot be scaled by ", embedding_scale);
  check_rope();
  check_experts();
}

void ModelConfig::check_rope() const {
  if (rotary_size < 0 || rotary_size > head_size)
    fail_usage("rotary positions turn some of a head's ", head_size, " channels, not ", rotary_size);
  if (positions == Positions::rope && rotary_width() % 2)
    fail_usage("rotary positions need an even head size, not ", rotary_width());
  if (!(rope_factor >= 1 && rope_low > 0 && rope_high > rope_low && rope_original > 0))
    fail_usage("rotary positions cannot be stretched by factor ", rope_factor, ", low ", rope_low, ", high ", rope_high,
               ", original context ", rope_original);
  if (!(rope_magnitude > 0 && rope_magnitude < 1e3))
    fail_usage("rotary positions cannot have magnitude ", rope_magnitude);
  for (const double theta : {rope_theta, rope_local_theta})
    if (!(theta > 1)) fail_usage("rope theta must be over 1, not ", theta);
  if (global_every < 0 || global_every == 1 || global_every > layers + 1)
    fail_usage("of ", layers, " layers, those with a theta of their own cannot be all but each ", global_every, "-th");
  if (rope_kind != RopeKind::longrope) return;
  const size_t pairs = static_cast<size_t>(rotary_width() / 2);
  if (pairs > 128) fail_usage("longrope has divisors for at most 128 pairs of channels, not ", pairs);
  for (const auto* list : {&rope_near, &rope_far}) {
    if (list->size() != pairs) fail_usage("longrope needs a divisor for each of ", pairs, " pairs, not ", list->size());
    for (const double divisor : *list)
      if (!(divisor > 0 && divisor < 1e9)) fail_usage("rotary frequencies cannot be divided by ", divisor);
  }
}

void ModelConfig::check_experts() const {
  if (!experts) {
    if (experts_per_token || shared_hidden || router_bias) fail_usage("a model without experts has none for a token");
    return;
  }
  constexpr int64_t kMost = 512;
  if (experts < 2 || experts > kMost) fail_value("experts", " must be between 2 and ", kMost, ", not ", experts);
  // The weight of one expert alone would be 1, whatever its logit, and the router would not learn.
  if (experts_per_token < 2 || experts_per_token > experts)
    fail_value("experts-per-token", " must be between 2 and the ", experts, " experts, not ", experts_per_token);
  if (shared_hidden < 0 || shared_hidden > int64_t{1} << 24)
    fail_value("shared-expert-hidden", " cannot be ", shared_hidden);
  if (!is_gated(activation) || bias || mlp_bias)
    fail_usage("experts are gated and have no biases: --experts goes with --activation swiglu or geglu and --bias off");
}

void set_architecture(ModelConfig& c, Architecture architecture) {
  const bool gpt2 = architecture == Architecture::gpt2, qwen3 = architecture == Architecture::qwen3;
  c.norm = gpt2 ? Norm::layernorm : Norm::rmsnorm;
  c.positions = gpt2 ? Positions::learned : Positions::rope;
  c.activation = gpt2 ? Activation::gelu : Activation::swiglu;
  c.qk_norm = qwen3 || architecture == Architecture::modern;
  c.head_bias = c.parallel_block = c.post_norms = false, c.rotary_size = c.global_every = 0;
  c.bias = gpt2, c.qkv_bias = c.attention_out_bias = c.mlp_bias = false, c.embedding_scale = 1;
  c.tied_head = gpt2 || qwen3;
  c.norm_epsilon = c.qk_norm ? 1e-6 : 1e-5;
}

int64_t usual_hidden(int64_t channels, Activation activation) {
  if (!is_gated(activation)) return 4 * channels;
  return (8 * channels / 3 + 31) / 32 * 32;
}

void set_depth(ModelConfig& c, int64_t layers) {
  constexpr int64_t kMost = 64;
  if (layers > kMost) fail_value("depth", " ", layers, " is more than ", kMost, "; give layers and channels instead");
  const double deep = static_cast<double>(layers) / 4, wide = 128 * std::pow(deep, 1 / 0.6);
  const int64_t step = wide < 256 ? 32 : 128;
  c.layers = layers;
  c.channels = std::max<int64_t>(1, std::llround(wide / static_cast<double>(step))) * step;
  c.head_size = c.channels < 384 ? 32 : c.channels < 2048 ? 64 : 128;
  c.heads = c.kv_heads = c.channels / c.head_size;
  c.context = 64;
  while (c.context < 2048 && static_cast<double>(c.context) < 63 * std::pow(deep, 2.5)) c.context *= 2;
  c.hidden = usual_hidden(c.channels, c.activation);
}

std::span<const Preset> presets() { return kPresets; }

ModelConfig config_of(const Preset& p) {
  ModelConfig c;
  set_architecture(c, p.architecture);
  c.layers = p.layers, c.heads = p.heads, c.kv_heads = p.kv_heads, c.channels = p.channels;
  c.head_size = p.head_size, c.hidden = p.hidden, c.context = p.context, c.tied_head = p.tied_head;
  if (p.vocabulary) c.vocabulary = p.vocabulary;
  if (c.positions == Positions::rope && p.vocabulary) c.rope_theta = p.architecture == Architecture::llama ? 5e5 : 1e6;
  return c;
}

const Preset* find_preset(std::string_view name) {
  for (const Preset& p : kPresets)
    if (!name.empty() && (lower(name) == lower(p.name) || name == p.also)) return &p;
  return nullptr;
}

const Preset& preset_named(const std::string& name) {
  if (const Preset* found = find_preset(name)) return *found;
  std::error_code none;
  if (std::filesystem::is_regular_file(name, none))
    fail_usage("the model ", name, " is a file; make a directory of it that training goes on from: train_gpt import ",
               name, " --out DIR");
  std::string known, nearest;
  const std::string meant = letters_and_digits(name);
  double least = 0.5 * static_cast<double>(meant.size());  // what is farther is another name
  for (const Preset& p : kPresets) {
    known += (known.empty() ? "" : ", ") + std::string(p.name);
    for (const char* called : {p.name, p.also})
      if (const double wrong = distance(meant, letters_and_digits(called)); *called && wrong < least)
        least = wrong, nearest = called;
  }
  fail_usage("unknown model \"", name, "\"", nearest.empty() ? "" : concat(": ", nearest, "?"), " Presets: ", known);
}

}  // namespace llm
