#include "llm/model/huggingface_rope.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

namespace llm {
namespace {

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

std::vector<double> read_divisors(const Keys& rope, const char* key, int64_t pairs) {
  const std::vector<double> divisors = rope.numbers(key);
  if (std::ssize(divisors) != pairs)
    fail(rope.path(), ": \"", key, "\" has ", divisors.size(), " numbers for ", pairs, " pairs of channels");
  return divisors;
}

// LongRoPE (Ding et al. 2024), by the same file's _compute_longrope_parameters(). Phi-3 has the original context beside it.
void read_longrope(const Keys& keys, const Keys& rope, const std::string& type, ModelConfig& c) {
  const char* const original = "original_max_position_embeddings";
  c.rope_original = keys.count(original, rope.count(original, type == "phi3" ? 4096 : c.context));
  if (c.rope_original < 2) fail(keys.path(), ": \"", original, "\" is ", c.rope_original);
  c.rope_factor = rope.number("factor", static_cast<double>(c.context) / static_cast<double>(c.rope_original));
  c.rope_factor = std::max(1.0, c.rope_factor);
  const double of_original = std::log(static_cast<double>(c.rope_original));
  c.rope_magnitude = rope.number("attention_factor", std::sqrt(1 + std::log(c.rope_factor) / of_original));
  c.rope_near = read_divisors(rope, "short_factor", c.rotary_width() / 2);
  c.rope_far = read_divisors(rope, "long_factor", c.rotary_width() / 2);
}

// The kind of stretching, none for "default". Phi-3's first files call longrope by other names.
std::optional<RopeKind> kind_of(const Keys& rope, const std::string& type) {
  const char* const key = rope.has("rope_type") ? "rope_type" : "type";  // "type" is the older spelling
  std::string kind = rope.text(key, "default");
  if (type == "phi3" && (kind == "su" || kind == "yarn")) return RopeKind::longrope;
  rope.require(key, {"default", "none", "llama3", "linear", "dynamic", "yarn", "longrope"});
  return find_value<RopeKind>(kind);
}

void read_scaling(const Keys& keys, const Keys& rope, const std::string& type, ModelConfig& c) {
  const std::optional<RopeKind> kind = kind_of(rope, type);
  ModelConfig scaled = c;
  scaled.rope_kind = kind.value_or(RopeKind::llama3);
  if (kind == RopeKind::yarn) {
    read_yarn(rope, scaled);
  } else if (kind == RopeKind::longrope) {
    read_longrope(keys, rope, type, scaled);
  } else if (kind) {
    scaled.rope_factor = rope.number("factor");
  }
  if (kind == RopeKind::llama3) {
    scaled.rope_low = rope.number("low_freq_factor");
    scaled.rope_high = rope.number("high_freq_factor");
    scaled.rope_original = rope.count("original_max_position_embeddings");
  }
  if (scaled.is_stretched()) c = scaled;  // a factor of 1 stretches nothing
  c.rope_theta = rope.number("rope_theta", c.rope_theta);
}

// Of a head's channels, the first ones alone may be turned, as transformers rounds.
void read_partial(const Keys& keys, const std::string& type, ModelConfig& c) {
  double share = keys.number("partial_rotary_factor", type == "phi" ? 0.5 : 1.0);
  for (const char* name : {"rope_scaling", "rope_parameters"})
    if (keys.has(name)) share = keys.object(name).number("partial_rotary_factor", share);
  if (share == 1) return;
  if (!type.starts_with("phi"))
    fail(keys.path(), ": \"partial_rotary_factor\" is not supported: all of a head is rotated");
  if (!(share > 0 && share <= 1)) fail(keys.path(), ": \"partial_rotary_factor\" is ", share, ", not within 0 and 1");
  c.rotary_size = static_cast<int64_t>(static_cast<double>(c.head_size) * share);
  if (c.rotary_size < 2) fail(keys.path(), ": \"partial_rotary_factor\" ", share, " leaves nothing of a head to turn");
}

}  // namespace

void read_rope(const Keys& keys, const std::string& type, ModelConfig& c) {
  const bool gemma3 = type == "gemma3_text";
  c.rope_theta = keys.number("rope_theta", gemma3 ? 1e6 : 1e4);
  if (gemma3) c.rope_local_theta = keys.number("rope_local_base_freq", c.rope_local_theta);
  read_partial(keys, type, c);
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!keys.has(name)) continue;
    const Keys rope = keys.object(name);
    // Gemma 3 has parameters for each kind of layer.
    if (gemma3 && rope.has("sliding_attention")) {
      const Keys local = rope.object("sliding_attention");
      local.require("rope_type", {"default"});
      c.rope_local_theta = local.number("rope_theta", c.rope_local_theta);
    }
    if (gemma3 && (rope.has("full_attention") || rope.has("sliding_attention"))) {
      if (rope.has("full_attention")) read_scaling(keys, rope.object("full_attention"), type, c);
    } else {
      read_scaling(keys, rope, type, c);
    }
  }
}

}  // namespace llm
