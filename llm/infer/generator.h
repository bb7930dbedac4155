// One text at a time, by an engine with one sequence: what `generate` and a training run's samples use. Unlike a request
// to the engine, a text may be longer than the context.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "llm/infer/engine.h"

namespace llm {

class Generator {
 public:
  // `layout` as for Engine; `known_tokens` and `divide` as in EngineOptions.
  Generator(const ModelConfig& config, const PersistentLayout& layout, const Target& target, int64_t known_tokens = 0,
            std::function<void(Graph&)> divide = {});

  size_t arena_bytes() const { return engine_.arena_bytes(); }
  void bind(const Arena& arena, Communicator* ranks = nullptr) { engine_.bind(arena, ranks); }

  // Calls `on_token(id)` for each new token until max_tokens are made, on_token returns false, or `stop_token` comes
  // (>= 0; it is not handed on). Of a prompt longer than the context the last `context` tokens count. When the context
  // is full, its last half, the newest token included, is processed anew as the prompt and generation continues. Throws
  // UsageError for sampling options out of range, Error for an empty prompt or one with an id outside the vocabulary.
  void generate(const std::vector<int32_t>& prompt, int64_t max_tokens, const SamplingOptions& sampling,
                int32_t stop_token, const std::function<bool(int32_t)>& on_token);

  // The logits (V) of the token that follows `prompt`, which generate() samples from; errors as there.
  std::vector<float> logits(const std::vector<int32_t>& prompt);

  EngineStatistics statistics() const { return engine_.statistics(); }
  // As Engine::bytes_per_token.
  double bytes_per_token(double position) const { return engine_.bytes_per_token(position); }

 private:
  // The last `context` tokens.
  std::vector<int32_t> window_of(const std::vector<int32_t>& prompt) const;
  // Runs a request to its end, and says whether that was its length; throws Error for what went wrong.
  bool run(Request request, RequestCallbacks callbacks);

  int64_t context_;
  Engine engine_;
  Engine::Id current_ = 0;
};

}  // namespace llm
