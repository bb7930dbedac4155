// Text generation with a key-value cache: the prompt is processed in pieces, then one token at a time. The tokens are
// those of a full recomputation.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "llm/graph/program.h"
#include "llm/model/config.h"
#include "llm/model/gpt.h"

namespace llm {

struct SamplingOptions {
  double temperature = 1.0;  // 0: always the likeliest token, of equals the one with the lowest id
  int64_t top_k = 0;         // only the k likeliest tokens; 0: all
  double top_p = 1.0;        // of those, the smallest set whose probability reaches this (Holtzman et al. 2020)
  uint64_t seed = 1;
};

// One token from logits (V): a pure function of the options and `index`, the token's number in the run (Philox).
// `scratch` holds V pairs between calls so that nothing is allocated.
class Sampler {
 public:
  // Throws UsageError for options out of range.
  Sampler(const SamplingOptions& options, int64_t vocabulary);
  // Throws Error for logits that are NaN or +inf, or all -inf.
  int32_t sample(const float* logits, int64_t index);

 private:
  SamplingOptions options_;
  size_t vocabulary_;
  std::vector<std::pair<float, int32_t>> scratch_;
};

class Generator {
 public:
  // `layout` holds the parameters (and whatever else is persistent); the caches and the programs' transient tensors lie
  // behind it. The cache holds `config.context` positions.
  Generator(const ModelConfig& config, const PersistentLayout& layout, const Target& target);
  ~Generator();

  size_t arena_bytes() const;
  void bind(const Arena& arena, ThreadTeam& threads);

  // Calls `on_token(id)` for each new token until max_tokens are made, it returns false, or `stop_token` comes (>= 0;
  // it is not handed on). Throws Error for an empty prompt or one with an id outside the vocabulary. Of a prompt longer
  // than the context the last `context` tokens count. When the context is full, the last half of it, the newest token
  // included, is processed anew as the prompt and generation goes on (so a text may be longer than the context).
  void generate(const std::vector<int32_t>& prompt, int64_t max_tokens, const SamplingOptions& sampling,
                int32_t stop_token, const std::function<bool(int32_t)>& on_token);

  // The logits (V) of the token that follows `prompt`, which generate() samples from; errors as there.
  std::vector<float> logits(const std::vector<int32_t>& prompt);

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace llm
