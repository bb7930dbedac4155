#include "llm/infer/generator.h"

#include <algorithm>

#include "llm/base/error.h"

namespace llm {
namespace {

// As many rows as a matrix product needs to come near the machine's peak; with more the activations leave the caches.
constexpr int64_t kLargestPiece = 256;

// The programs that take `tokens` new tokens: to the logits, or into the cache alone, without the head, where more follow.
struct Piece {
  int64_t tokens;
  TensorId input, logits;
  Program to_logits, to_cache;

  Piece(const GenerationGraph& graph, Compiled with_logits, const PersistentLayout& layout, const Target& target)
      : tokens(graph.graph.shape(graph.tokens)[1]),
        input(graph.tokens),
        logits(graph.logits),
        to_logits(std::move(with_logits), layout),
        to_cache(compile(graph.graph, {}, target), layout) {}
};

}  // namespace

struct Generator::Implementation {
  int64_t vocabulary, context;
  // Of 1, 2, 4, ... tokens. All of them are made at the start, so that the size of the arena is known: a prompt of any
  // length is a sum of them.
  std::vector<std::unique_ptr<Piece>> pieces;
  std::vector<float> logits;  // (V), of the last token

  Implementation(const ModelConfig& config, PersistentLayout layout, const Target& target)
      : vocabulary(config.vocabulary), context(config.context), logits(static_cast<size_t>(config.vocabulary)) {
    for (int64_t tokens = 1; tokens <= std::min(kLargestPiece, context); tokens *= 2) {
      const GenerationGraph graph = build_generation_graph(config, 1, tokens, context, dtype_of(target.precision));
      Compiled with_logits = compile(graph.graph, graph.results(), target);
      layout.add(with_logits.graph);  // the caches, which all pieces share
      pieces.push_back(std::make_unique<Piece>(graph, std::move(with_logits), layout, target));
    }
  }

  // What counts of a prompt.
  std::vector<int32_t> window_of(const std::vector<int32_t>& prompt) const {
    if (prompt.empty()) fail("generation needs a prompt of at least one token");
    for (const int32_t id : prompt)
      if (id < 0 || id >= vocabulary)
        fail("the prompt's token ", id, " is outside the model's vocabulary of ", vocabulary);
    return {prompt.end() - std::min(static_cast<int64_t>(prompt.size()), context), prompt.end()};
  }

  // Logits (V) of what follows `tokens`, of which the first `cached` are in the cache already.
  const float* forward(const std::vector<int32_t>& tokens, int64_t cached) {
    const auto count = static_cast<int64_t>(tokens.size());
    for (size_t i = pieces.size(); cached < count;) {
      Piece& piece = *pieces[i - 1];
      if (piece.tokens > count - cached) {
        --i;
        continue;
      }
      const bool last = cached + piece.tokens == count;
      Program& program = last ? piece.to_logits : piece.to_cache;
      program.write(piece.input, tokens.data() + cached);
      program.step.position = cached;
      program.run(Phase::forward);
      cached += piece.tokens;
      if (last) program.read(piece.logits, logits.data());
    }
    return logits.data();
  }
};

Generator::Generator(const ModelConfig& config, const PersistentLayout& layout, const Target& target)
    : implementation_(std::make_unique<Implementation>(config, layout, target)) {}

Generator::~Generator() = default;

size_t Generator::arena_bytes() const {
  size_t bytes = 0;
  for (const auto& piece : implementation_->pieces)
    bytes = std::max({bytes, piece->to_logits.arena_bytes(), piece->to_cache.arena_bytes()});
  return bytes;
}

void Generator::bind(const Arena& arena, ThreadTeam& threads) {
  for (const auto& piece : implementation_->pieces) {
    piece->to_logits.bind(arena, threads);
    piece->to_cache.bind(arena, threads);
  }
}

std::vector<float> Generator::logits(const std::vector<int32_t>& prompt) {
  Implementation& model = *implementation_;
  const float* logits = model.forward(model.window_of(prompt), 0);
  return {logits, logits + model.vocabulary};
}

void Generator::generate(const std::vector<int32_t>& prompt, int64_t max_tokens, const SamplingOptions& sampling,
                         int32_t stop_token, const std::function<bool(int32_t)>& on_token) {
  Implementation& model = *implementation_;
  // The tokens that the next one depends on, the first `cached` of which are in the cache.
  std::vector<int32_t> window = model.window_of(prompt);
  Sampler sampler(sampling, model.vocabulary);
  int64_t cached = 0;
  for (int64_t index = 0; index < max_tokens; ++index) {
    if (static_cast<int64_t>(window.size()) > model.context) {
      window.erase(window.begin(), window.end() - std::max<int64_t>(1, model.context / 2));
      cached = 0;
    }
    const float* logits = model.forward(window, cached);
    cached = static_cast<int64_t>(window.size());
    const int32_t id = sampler.sample(logits, index);
    if (id == stop_token || !on_token(id)) return;
    window.push_back(id);
  }
}

}  // namespace llm
