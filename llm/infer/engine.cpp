#include "llm/infer/engine.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "llm/base/clock.h"
#include "llm/base/error.h"
#include "llm/base/packed_panels.h"
#include "llm/base/packed_rows.h"
#include "llm/base/rounding.h"
#include "llm/infer/batch.h"
#include "llm/infer/choose.h"
#include "llm/model/parameters.h"

namespace llm {
struct Engine::Implementation {
  const ModelConfig config;
  const EngineOptions options;
  PagedModel model;
  Batch batch;
  Id last_id = 0;
  bool stepping = false;
  EngineStatistics counted;
  double model_seconds = 0;  // of the step, with the callbacks

  std::vector<SampleRow> options_of_rows;
  bool wants_logits = false;
  std::vector<std::vector<SamplingCandidate>> scratch;  // by thread
  const Arena* arena = nullptr;
  double weight_bytes = 0, position_bytes = 0;  // that a token reads: in all, and for each position before it

  static EngineOptions completed(EngineOptions o, const ModelConfig& c) {
    if (o.most_running < 1 || o.tokens_of_step < o.most_running)
      fail("the engine's steps of ", o.tokens_of_step, " tokens must have room for its ", o.most_running, " sequences");
    if (o.blocks == 0) o.blocks = ceil_div(c.context, kBlockTokens);
    if (o.known_tokens <= 0 || o.known_tokens > c.vocabulary) o.known_tokens = c.vocabulary;
    return o;
  }

  Implementation(const ModelConfig& c, const PersistentLayout& layout, const Target& target, const EngineOptions& o)
      : config(c),
        options(completed(o, c)),
        model(c, layout, target, options.tokens_of_step,
              {options.blocks, kBlockTokens, options.most_running, target.cache_type()}, options.known_tokens,
              options.divide),
        batch(options, c.context, c.rope_kind == RopeKind::longrope ? c.rope_original : c.context + 1) {
    for (const Parameter& p : parameter_table(config)) {
      const bool looked_up =
          p.group == LearningRateGroup::embedding && !(config.tied_head && p.name == "token_embedding.weight");
      const DType type = type_of(p, dtype_of(target.precision), target.weights);
      const double bits =
          is_quantized(type) ? bits_of_number(type) + 16.0 / kBlockValues : 8 * static_cast<double>(size_of(type));
      weight_bytes += bits / 8 * static_cast<double>(looked_up ? p.shape.last() : p.shape.elements());
    }
    position_bytes = static_cast<double>(block_bytes(config, target)) / kBlockTokens;
  }

  template <class Call>
  void call_back(Call&& call) {
    const auto begin = Clock::now();
    call();
    model_seconds += seconds_since(begin);
  }

  void finish(Sequence& s, Finish why, const std::string& error = {}) {
    s.ended = true;
    if (s.callbacks.on_finish) call_back([&] { s.callbacks.on_finish(why, error); });
  }

  void hand_on(Sequence& s, const TokenOutput& output) {
    if (s.callbacks.on_token) call_back([&] { s.callbacks.on_token(output); });
  }

  // Hands on tokens of the prompt that have no log-probability, where that was asked for.
  void echo_until(Sequence& s, int64_t end) {
    while (s.request.echo && s.echoed < end && !s.ended) {
      const int64_t position = s.echoed++;
      hand_on(s, {s.tokens[static_cast<size_t>(position)], position, std::numeric_limits<float>::quiet_NaN(), {}});
    }
  }

  // What follows from the logits of a row: a token of the prompt is scored, or a new one is there.
  void take(const Wanted& w, Chosen& chosen) {
    Sequence& s = *w.sequence;
    if (s.ended || !batch.holds(w)) return;
    if (!chosen.error.empty()) return finish(s, Finish::error, chosen.error);
    TokenOutput& output = chosen.output;
    output.position = w.position + 1;
    const bool of_prompt = output.position < s.prompt;
    echo_until(s, of_prompt ? 1 : s.prompt);
    if (s.ended) return;
    if (of_prompt) {
      ++s.echoed;
      return hand_on(s, output);
    }
    const auto& stops = s.request.stop_tokens;
    if (std::find(stops.begin(), stops.end(), output.id) != stops.end()) return finish(s, Finish::stop);
    if (w.position >= s.taken_in) ++counted.accepted_tokens, s.taken_in = w.position + 1;  // the draft was right
    s.tokens.push_back(output.id);
    if (s.request.sampling.penalizes()) ++s.counts[output.id];
    ++counted.new_tokens;
    hand_on(s, output);
    if (!s.ended && s.may_follow(config.context) == 0) finish(s, Finish::length);
  }

  // Whether a row takes more than a draw by the device.
  static bool needs_logits(const Wanted& w) {
    const Request& r = w.sequence->request;
    return !w.draws() || r.logprobs >= 0 || r.sampling.penalizes() || !r.sampling.bias.empty() ||
           w.sequence->callbacks.on_logits;
  }

  // What the device is to draw for the wanted rows from `first` on; notes whether the host needs logits, too.
  std::span<const SampleRow> draw_options(size_t first, size_t count) {
    options_of_rows.assign(count, {});
    wants_logits = false;
    for (size_t i = 0; i < count; ++i) {
      const Wanted& w = batch.wanted()[first + i];
      const SamplingOptions& o = w.sequence->request.sampling;
      if (needs_logits(w))
        wants_logits = true;
      else
        options_of_rows[i] = {o.temperature, o.top_p, o.min_p, o.top_k, o.seed, w.index()};
    }
    return options_of_rows;
  }

  // Logits of all wanted rows, so many at once, and what follows from them.
  void choose() {
    const int64_t vocabulary = config.vocabulary;
    const std::vector<Wanted>& wanted = batch.wanted();
    std::vector<int32_t> numbers;
    std::vector<Chosen> all;
    for (size_t first = 0; first < wanted.size(); first += numbers.size()) {
      numbers.clear();
      for (size_t i = first; i < wanted.size() && numbers.size() < PagedModel::kMostHeadRows; ++i)
        numbers.push_back(wanted[i].row);
      const auto begin = Clock::now();
      model.run_head(numbers, draw_options(first, numbers.size()));
      const Draw* const draws = model.draws();
      float* const logits = !draws || wants_logits ? model.logits() : nullptr;
      model_seconds += seconds_since(begin);
      for (size_t i = 0; i < numbers.size(); ++i)
        if (const Wanted& w = wanted[first + i]; w.draws() && w.sequence->callbacks.on_logits && !w.sequence->ended)
          call_back([&] {
            w.sequence->callbacks.on_logits(
                {logits + static_cast<int64_t>(i) * vocabulary, static_cast<size_t>(vocabulary)});
          });
      all.assign(numbers.size(), {});
      arena->device().threads().for_items(static_cast<int64_t>(numbers.size()), [&](int64_t i, int rank) {
        const Wanted& w = wanted[first + static_cast<size_t>(i)];
        const Sequence& s = *w.sequence;
        Chosen& chosen = all[static_cast<size_t>(i)];
        const Vocabulary tokens{vocabulary, options.known_tokens};
        float* const row = logits ? logits + i * vocabulary : nullptr;
        if (draws && !needs_logits(w))
          chosen = chosen_by(draws[i]);
        else if (w.draws())
          chosen = choose_token(s.request, s.counts, w.index(), row, tokens, scratch[static_cast<size_t>(rank)]);
        else
          chosen = score_token(s.request, s.tokens[static_cast<size_t>(w.position) + 1], row, tokens);
      });
      for (size_t i = 0; i < numbers.size(); ++i) take(wanted[first + i], all[i]);
    }
    for (const auto& s : batch.running())  // that were only to be read
      if (!s->ended && s->left() == 0) {
        echo_until(*s, s->prompt);
        if (!s->ended) finish(*s, Finish::length);
      }
  }

  bool step() {
    if (batch.empty()) return false;
    const auto begin = Clock::now();
    model_seconds = 0;
    stepping = true;
    batch.plan(model);
    const auto run = Clock::now();
    model.run(batch.rows());
    model_seconds += seconds_since(run);
    choose();
    stepping = false;
    batch.remove_ended();
    ++counted.steps;
    const double all = seconds_since(begin);
    counted.seconds += all;
    counted.own_seconds += all - model_seconds;
    return true;
  }
};

Engine::Engine(const ModelConfig& config, const PersistentLayout& layout, const Target& target,
               const EngineOptions& options)
    : implementation_(std::make_unique<Implementation>(config, layout, target, options)) {}

Engine::~Engine() = default;

size_t Engine::block_bytes(const ModelConfig& c, const Target& target) {
  return static_cast<size_t>(2 * c.layers * c.kv_heads * kBlockTokens *
                             packed_row_bytes(target.cache_type(), c.head_size));
}

int64_t Engine::blocks_within(size_t bytes, const ModelConfig& config, const PersistentLayout& layout,
                              const Target& target, const EngineOptions& options) {
  EngineOptions one = options;
  one.blocks = 1;
  const size_t least = Engine(config, layout, target, one).arena_bytes();
  if (bytes < least) return 0;
  // The blocks of a layer lie in two tensors, each of which begins at a multiple of 256 bytes.
  const size_t tensor = block_bytes(config, target) / static_cast<size_t>(2 * config.layers);
  const auto needed = [&](int64_t blocks) {
    return least + static_cast<size_t>(2 * config.layers) *
                       (placed_bytes(static_cast<size_t>(blocks) * tensor) - placed_bytes(tensor));
  };
  int64_t blocks = 1 + static_cast<int64_t>((bytes - least) / block_bytes(config, target)) +
                   static_cast<int64_t>(ceil_div(256, static_cast<int64_t>(tensor)));
  while (needed(blocks) > bytes) --blocks;
  return blocks;
}

size_t Engine::arena_bytes() const { return implementation_->model.arena_bytes(); }

void Engine::bind(const Arena& arena, Communicator* ranks) {
  implementation_->arena = &arena;
  implementation_->scratch.resize(static_cast<size_t>(arena.device().threads().size()));
  implementation_->model.bind(arena, ranks);
}

Engine::Id Engine::submit(Request request, RequestCallbacks callbacks) {
  Implementation& e = *implementation_;
  check(request.sampling, e.config.vocabulary);
  const auto size = static_cast<int64_t>(request.prompt.size());
  if (size == 0) fail("generation needs a prompt of at least one token");
  for (const int32_t id : request.prompt)
    if (id < 0 || id >= e.config.vocabulary)
      fail("the prompt's token ", id, " is outside the model's vocabulary of ", e.config.vocabulary);
  if (size > e.config.context)
    fail("the prompt's ", size, " tokens are more than the model's context of ", e.config.context);
  request.max_tokens = std::max<int64_t>(0, request.max_tokens);
  // The last token of a text is never taken in.
  const int64_t positions = std::min(e.config.context, size + std::max<int64_t>(0, request.max_tokens - 1));
  if (const int64_t blocks = ceil_div(positions, kBlockTokens); blocks > e.options.blocks)
    fail("a prompt of ", size, " tokens and ", request.max_tokens, " new ones need ", blocks,
         " blocks of the key-value memory, which has ", e.options.blocks, "; fewer new tokens or more memory would do");
  auto s = std::make_unique<Sequence>();
  s->id = ++e.last_id;
  s->prompt = size;
  s->tokens = request.prompt;
  if (request.sampling.penalizes())
    for (const int32_t token : request.prompt) s->counts.try_emplace(token, 0);
  s->request = std::move(request);
  s->callbacks = std::move(callbacks);
  e.batch.add(std::move(s));
  return e.last_id;
}

void Engine::cancel(Id id) {
  Implementation& e = *implementation_;
  e.batch.end(id);
  if (!e.stepping) e.batch.remove_ended();
}

bool Engine::step() { return implementation_->step(); }

EngineStatistics Engine::statistics() const {
  const Implementation& e = *implementation_;
  EngineStatistics s = e.counted;
  e.batch.count(s);
  return s;
}

double Engine::bytes_per_token(double position) const {
  return implementation_->weight_bytes + position * implementation_->position_bytes;
}

}  // namespace llm
