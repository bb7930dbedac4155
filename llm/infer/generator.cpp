#include "llm/infer/generator.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "llm/base/error.h"
#include "llm/model/parameters.h"

namespace llm {
namespace {

// Tokens in the largest piece: as many rows as a matrix product needs to come near the machine's peak; with more rows
// the activations leave the caches.
constexpr int64_t kLargestPiece = 256;

// A program that takes new tokens, and the tensors by which the host talks to it.
struct Walk {
  TensorId input, logits, draws;
  Program program;

  // Adds the state of the graph (caches, next token, draws), which all walks share, to the layout.
  Walk(const GenerationGraph& graph, Compiled compiled, PersistentLayout& layout)
      : input(graph.tokens),
        logits(graph.logits),
        draws(graph.draws),
        program((layout.add(compiled.graph), std::move(compiled)), layout) {}

  void run(int64_t position) {
    program.step.position = position;
    program.run(Phase::forward);
  }
  void run(int64_t position, const SamplingOptions& sampling, int64_t index) {
    StepState& s = program.step;
    s.temperature = sampling.temperature, s.top_k = sampling.top_k, s.top_p = sampling.top_p, s.seed = sampling.seed;
    s.token_index = index;
    run(position);
  }
};

// The two programs that take `tokens` new tokens of a prompt: to the token that comes next, or, where more of the
// prompt follows, into the cache alone, without the head.
struct Piece {
  int64_t tokens;
  std::unique_ptr<Walk> to_token, to_cache;
};

}  // namespace

struct Generator::Implementation {
  int64_t vocabulary, context;
  double weight_bytes = 0, position_bytes = 0;  // that a token reads: in all, and for each position before it
  // Pieces of 1, 2, 4, ... tokens, of which a prompt of any length is a sum. All are made at the start, so that the
  // size of the arena is known.
  std::vector<Piece> pieces;
  // The programs that read the token that the walk before left on the device, and sample the next one.
  std::unique_ptr<Walk> next_greedy, next;
  std::unique_ptr<Download> download;
  std::vector<float> logits;  // (V), of the last token
  int under_way = 0;          // draws that were fetched and not taken
  int64_t ahead = 0;          // how many walks are started before the host takes the draw of the first

  Implementation(const ModelConfig& config, PersistentLayout layout, const Target& target, int64_t known_tokens)
      : vocabulary(config.vocabulary), context(config.context), logits(static_cast<size_t>(config.vocabulary)) {
    const DType dtype = dtype_of(target.precision);
    for (const Parameter& p : parameter_table(config)) {
      const bool looked_up =
          p.group == LearningRateGroup::embedding && !(config.tied_head && p.name == "token_embedding.weight");
      weight_bytes +=
          static_cast<double>((looked_up ? p.shape.last() : p.shape.elements()) * static_cast<int64_t>(size_of(dtype)));
    }
    const auto walk = [&](int64_t tokens, SamplingForm sampling, bool with_logits) {
      if (known_tokens < vocabulary) sampling.limit = known_tokens;
      const GenerationGraph g = build_generation_graph(config, 1, tokens, context, dtype, sampling);
      return std::make_unique<Walk>(g, compile(g.graph, with_logits ? g.results() : std::vector<TensorId>{}, target),
                                    layout);
    };
    for (int64_t tokens = 1; tokens <= std::min(kLargestPiece, context); tokens *= 2)
      pieces.push_back({tokens, walk(tokens, {.sample = true}, true), walk(tokens, {}, false)});
    next_greedy = walk(1, {.sample = true, .greedy = true, .after_token = true}, false);
    next = walk(1, {.sample = true, .after_token = true}, false);
    const DType cached = layout.dtype("layers.0.keys");
    position_bytes = static_cast<double>(2 * config.layers * config.kv_heads * config.head_size *
                                         static_cast<int64_t>(size_of(cached)));
  }

  template <class Use>
  void for_walks(Use use) {
    for (const Piece& piece : pieces) use(*piece.to_token), use(*piece.to_cache);
    for (const auto* walk : {&next_greedy, &next}) use(**walk);
  }

  // The last `context` tokens of a prompt, which are those that count.
  std::vector<int32_t> window_of(const std::vector<int32_t>& prompt) const {
    if (prompt.empty()) fail("generation needs a prompt of at least one token");
    for (const int32_t id : prompt)
      if (id < 0 || id >= vocabulary)
        fail("the prompt's token ", id, " is outside the model's vocabulary of ", vocabulary);
    return {prompt.end() - std::min(static_cast<int64_t>(prompt.size()), context), prompt.end()};
  }

  // Runs the pieces that `tokens` is a sum of, but for the first `cached` tokens, which are in the cache already, and
  // samples token number `index`. Returns the walk that did.
  Walk& take_in(const std::vector<int32_t>& tokens, int64_t cached, const SamplingOptions& sampling, int64_t index) {
    const auto count = static_cast<int64_t>(tokens.size());
    for (size_t i = pieces.size();;) {
      const Piece& piece = pieces[i - 1];
      if (piece.tokens > count - cached) {
        --i;
        continue;
      }
      const bool last = cached + piece.tokens == count;
      Walk& walk = last ? *piece.to_token : *piece.to_cache;
      walk.program.write(walk.input, tokens.data() + cached);
      last ? walk.run(cached, sampling, index) : walk.run(cached);
      cached += piece.tokens;
      if (last) return walk;
    }
  }

  // Starts to copy the draw of token number `index`, which the walk makes, to the host.
  void fetch(const Walk& walk, int64_t index) {
    ++under_way;
    auto* const from = walk.program.data<std::byte>(walk.draws) + static_cast<size_t>(index % kDraws) * sizeof(Draw);
    download->submit({{from, 0, sizeof(Draw)}});
  }
  // Waits for the oldest draw that was fetched and not taken.
  Draw take() {
    --under_way;
    Draw draw;
    std::memcpy(&draw, download->wait(), sizeof draw);
    return draw;
  }
};

Generator::Generator(const ModelConfig& config, const PersistentLayout& layout, const Target& target,
                     int64_t known_tokens)
    : implementation_(std::make_unique<Implementation>(config, layout, target, known_tokens)) {}

Generator::~Generator() = default;

size_t Generator::arena_bytes() const {
  size_t bytes = 0;
  implementation_->for_walks([&](Walk& walk) { bytes = std::max(bytes, walk.program.arena_bytes()); });
  return bytes;
}

void Generator::bind(const Arena& arena) {
  Implementation& model = *implementation_;
  model.for_walks([&](Walk& walk) { walk.program.bind(arena); });
  model.ahead = 1 + arena.device().ahead();
  model.download = arena.device().new_download(sizeof(Draw), true);
  // The next prompt overwrites what these runs leave in the cache and in the next token.
  for (const auto* walk : {&model.next_greedy, &model.next}) (*walk)->program.prepare(Phase::forward);
}

double Generator::bytes_per_token(double position) const {
  return implementation_->weight_bytes + position * implementation_->position_bytes;
}

std::vector<float> Generator::logits(const std::vector<int32_t>& prompt) {
  Implementation& model = *implementation_;
  const Walk& walk = model.take_in(model.window_of(prompt), 0, {}, 0);
  walk.program.read(walk.logits, model.logits.data());
  for (size_t i = 0; i < model.logits.size(); ++i)
    if (!std::isfinite(model.logits[i]))
      token_of({0, Draw::not_finite, static_cast<int32_t>(i), model.logits[i]});  // throws
  return model.logits;
}

void Generator::generate(const std::vector<int32_t>& prompt, int64_t max_tokens, const SamplingOptions& sampling,
                         int32_t stop_token, const std::function<bool(int32_t)>& on_token) {
  Implementation& model = *implementation_;
  Sampler(sampling, 1);                      // checks the options
  while (model.under_way > 0) model.take();  // what an earlier run started beyond its end
  Walk& next = *(sampling.temperature == 0 ? model.next_greedy : model.next);
  // `window`: the tokens that the next one depends on, as far as the host knows them. The cache holds the first
  // `cached` of these and of the tokens under way, which follow them.
  std::vector<int32_t> window = model.window_of(prompt);
  int64_t cached = 0, started = 0;
  for (int64_t index = 0; index < max_tokens; ++index) {
    while (started < std::min(max_tokens, index + model.ahead)) {
      if (started > 0 && cached < model.context) {
        next.run(cached++, sampling, started);
        model.fetch(next, started++);
        continue;
      }
      if (started > index) break;  // the window must be cut, which needs the tokens under way
      if (static_cast<int64_t>(window.size()) > model.context) {
        window.erase(window.begin(), window.end() - std::max<int64_t>(1, model.context / 2));
        cached = 0;
      }
      const Walk& walk = model.take_in(window, cached, sampling, started);
      cached = static_cast<int64_t>(window.size());
      model.fetch(walk, started++);
    }
    const int32_t id = token_of(model.take());
    if (id == stop_token || !on_token(id)) return;
    window.push_back(id);
  }
}

}  // namespace llm
