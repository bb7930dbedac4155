// Small models with made-up weights, for tests of inference.
#pragma once
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "llm/base/random.h"
#include "llm/graph/program.h"
#include "llm/graph/staging.h"
#include "llm/model/config.h"
#include "llm/model/parameters.h"

namespace test {

// gpt2, llama with grouped queries, qwen3, "mix": switches that no class of transformers combines, "experts": qwen3's with
// five of them and a shared one; "phi": its blocks, with longrope of some of a head's channels, which from 17 tokens on are
// turned otherwise; "gemma": Gemma 3's two kinds of layers.
inline llm::ModelConfig small_config(const std::string& kind) {
  llm::ModelConfig c;
  set_architecture(c, llm::find_value<llm::Architecture>(kind).value_or(llm::Architecture::modern));
  c.vocabulary = 61, c.context = 40, c.layers = 2, c.heads = 4, c.kv_heads = kind == "gpt2" ? 4 : 2;
  c.channels = 24, c.head_size = kind == "qwen3" ? 8 : 6, c.hidden = 40;
  if (kind == "experts")
    c.experts = 5, c.experts_per_token = 2, c.hidden = 24, c.shared_hidden = 12, c.router_bias = true;
  if (kind == "phi") {
    c.norm = llm::Norm::layernorm, c.activation = llm::Activation::gelu, c.qk_norm = false;
    c.bias = c.head_bias = c.parallel_block = true;
    c.rotary_size = 4, c.rope_kind = llm::RopeKind::longrope, c.rope_original = 16, c.rope_magnitude = 1.1;
    c.rope_near = {1, 2.5}, c.rope_far = {1.75, 40};
  }
  if (kind == "gemma") {
    c.activation = llm::Activation::geglu, c.post_norms = true, c.embedding_scale = 4.9;
    c.global_every = 2, c.rope_local_theta = 300, c.rope_magnitude = 0.9;
  }
  if (kind == "mix") c.activation = llm::Activation::relu2, c.norm = llm::Norm::layernorm, c.bias = true;
  return c;
}

inline llm::PersistentLayout layout_of(const llm::ModelConfig& config, llm::DType dtype = llm::DType::fp32,
                                       std::optional<llm::DType> weights = {}) {
  llm::Graph parameters;
  add_parameters(parameters, config, dtype, weights);
  llm::PersistentLayout layout;
  layout.add(parameters);
  return layout;
}

// Larger weights than initial ones, so that tokens depend on the whole context.
inline void fill_weights(const llm::ModelConfig& config, const llm::PersistentLayout& layout, const llm::Arena& arena) {
  llm::Staging staging(arena, layout);
  for (const llm::Parameter& p : parameter_table(config)) {
    float* const data = staging.room(p.name, p.shape.elements());
    const llm::Random random(3, llm::stream_of(p.name));
    const bool norm = p.init == llm::Parameter::Init::ones, table = p.group == llm::LearningRateGroup::embedding;
    const double scale = norm ? 0.1 : table ? 1.0 : 1.5 / std::sqrt(static_cast<double>(p.shape.last()));
    for (int64_t i = 0; i < p.shape.elements(); ++i)
      data[i] = static_cast<float>((norm ? 1.0 : 0.0) + scale * random.normal(static_cast<uint64_t>(i)));
  }
  staging.flush();
}

inline std::vector<int32_t> random_tokens(int64_t count, int64_t vocabulary, uint64_t seed) {
  const llm::Random random(seed, llm::stream_of("test/tokens"));
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>(random.bits(i) % static_cast<uint64_t>(vocabulary));
  return tokens;
}

}  // namespace test
