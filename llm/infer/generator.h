// Text generation with a key-value cache: the prompt is processed in pieces, then one token at a time. The tokens are
// those of a full recomputation. A token is one walk through the graph, which ends with its sampling and leaves the
// token where the next walk reads it. On a GPU the host starts the next walk before it has the token, and drops what it
// started beyond the end of a text.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "llm/graph/program.h"
#include "llm/model/config.h"
#include "llm/model/gpt.h"
#include "llm/ops/sampling.h"

namespace llm {

class Generator {
 public:
  // `layout` holds the parameters (and whatever else is persistent); the caches and the programs' transient tensors lie
  // behind it. The cache holds `config.context` positions. `known_tokens`: the vocabulary of the tokenizer,
  // which may be smaller than the model's (rounded up for speed): no token beyond it is drawn. 0: all tokens are.
  Generator(const ModelConfig& config, const PersistentLayout& layout, const Target& target, int64_t known_tokens = 0);
  ~Generator();

  size_t arena_bytes() const;
  void bind(const Arena& arena);

  // Calls `on_token(id)` for each new token until max_tokens are made, on_token returns false, or `stop_token` comes
  // (>= 0; it is not handed on). Of a prompt longer than the context the last `context` tokens count. When the context
  // is full, its last half, the newest token included, is processed anew as the prompt and generation continues, so
  // that a text may be longer than the context. Throws UsageError for sampling options out of range, Error for an empty
  // prompt or one with an id outside the vocabulary.
  void generate(const std::vector<int32_t>& prompt, int64_t max_tokens, const SamplingOptions& sampling,
                int32_t stop_token, const std::function<bool(int32_t)>& on_token);

  // Bytes that the token at that position reads: all weights (of tables that are looked up in, one row), and the keys
  // and values of the positions before.
  double bytes_per_token(double position) const;

  // The logits (V) of the token that follows `prompt`, which generate() samples from; errors as there.
  std::vector<float> logits(const std::vector<int32_t>& prompt);

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace llm
