#include "llm/model/config.h"

#include <algorithm>
#include <cmath>

#include "llm/base/error.h"

namespace llm {
namespace {

constexpr Preset kPresets[] = {
    // name, summary, architecture, layers, heads, kv_heads, channels, head_size, hidden, context, vocabulary, tied
    {"nano", "trains in seconds on a laptop", Architecture::modern, 2, 2, 2, 64, 32, 192, 64, 0, false},
    {"tiny", "0.8M: nanoGPT's CPU setting", Architecture::modern, 4, 4, 4, 128, 32, 352, 64, 0, false},
    {"small", "10M: nanoGPT's Shakespeare setting", Architecture::modern, 6, 6, 6, 384, 64, 1024, 256, 0, false},
    {"gpt2-124M", "GPT-2 small", Architecture::gpt2, 12, 12, 12, 768, 64, 3072, 1024, 50257, true},
    {"gpt2-355M", "GPT-2 medium", Architecture::gpt2, 24, 16, 16, 1024, 64, 4096, 1024, 50257, true},
    {"gpt2-774M", "GPT-2 large", Architecture::gpt2, 36, 20, 20, 1280, 64, 5120, 1024, 50257, true},
    {"gpt2-1.5B", "GPT-2 XL", Architecture::gpt2, 48, 25, 25, 1600, 64, 6400, 1024, 50257, true},
    {"llama-3.2-1B", "Llama 3.2 1B's shape", Architecture::llama, 16, 32, 8, 2048, 64, 8192, 8192, 128256, true},
    {"llama-3.1-8B", "Llama 3.1 8B's shape", Architecture::llama, 32, 32, 8, 4096, 128, 14336, 8192, 128256, false},
    {"qwen3-0.6B", "Qwen3 0.6B's shape", Architecture::qwen3, 28, 16, 8, 1024, 128, 3072, 4096, 151936, true},
    {"qwen3-1.7B", "Qwen3 1.7B's shape", Architecture::qwen3, 28, 16, 8, 2048, 128, 6144, 4096, 151936, true},
};

}  // namespace

void ModelConfig::check() const {
  const std::pair<const char*, int64_t> counts[] = {
      {"vocabulary", vocabulary}, {"context", context},   {"layers", layers},       {"heads", heads},
      {"kv-heads", kv_heads},     {"channels", channels}, {"head size", head_size}, {"hidden", hidden}};
  for (auto& [name, value] : counts)
    if (value < 1 || value > (int64_t{1} << 24)) fail_usage("the model's ", name, " cannot be ", value);
  if (heads % kv_heads) fail_value("kv-heads", " ", kv_heads, " does not divide heads ", heads);
  if (positions == Positions::rope && head_size % 2)
    fail_usage("rotary positions need an even head size, not ", head_size);
  if (!(logit_softcap >= 0 && logit_softcap < 1e6))
    fail_value("logit-softcap", " must be 0 or more, and below a million, not ", logit_softcap);
  if (!(norm_epsilon > 0 && norm_epsilon < 1)) fail_usage("norm epsilon must lie in (0, 1), not ", norm_epsilon);
  if (!(rope_factor >= 1 && rope_low > 0 && rope_high > rope_low && rope_original > 0))
    fail_usage("rotary positions cannot be stretched by factor ", rope_factor, ", low ", rope_low, ", high ", rope_high,
               ", original context ", rope_original);
  if (!(rope_theta > 1)) fail_usage("rope theta must be over 1, not ", rope_theta);
}

void set_architecture(ModelConfig& c, Architecture architecture) {
  const bool gpt2 = architecture == Architecture::gpt2, qwen3 = architecture == Architecture::qwen3;
  c.norm = gpt2 ? Norm::layernorm : Norm::rmsnorm;
  c.positions = gpt2 ? Positions::learned : Positions::rope;
  c.activation = gpt2 ? Activation::gelu : Activation::swiglu;
  c.qk_norm = qwen3 || architecture == Architecture::modern;
  c.bias = gpt2;
  c.tied_head = gpt2 || qwen3;
  c.norm_epsilon = c.qk_norm ? 1e-6 : 1e-5;
}

int64_t usual_hidden(int64_t channels, Activation activation) {
  if (activation != Activation::swiglu) return 4 * channels;
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

const Preset& preset_named(const std::string& name) {
  std::string known;
  for (const Preset& p : kPresets) {
    if (name == p.name) return p;
    known += (known.empty() ? "" : ", ") + std::string(p.name);
  }
  fail_usage("unknown model \"", name, "\"; presets: ", known);
}

}  // namespace llm
