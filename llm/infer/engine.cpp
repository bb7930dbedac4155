#include "llm/infer/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <limits>

#include "llm/base/error.h"
#include "llm/base/rounding.h"
#include "llm/infer/block_pool.h"
#include "llm/infer/choose.h"
#include "llm/infer/paged_model.h"
#include "llm/model/parameters.h"

namespace llm {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

constexpr int64_t kNoSlot = -1;

struct Sequence {
  Engine::Id id;
  Request request;
  RequestCallbacks callbacks;
  std::vector<int32_t> tokens;  // the prompt, then what was generated
  int64_t prompt = 0;           // tokens of the prompt
  TokenCounts counts;           // where there are penalties
  int64_t echoed = 0;           // tokens of the prompt that were handed on
  bool begun = false, ended = false;

  // While it is running:
  int64_t slot = kNoSlot;
  std::vector<BlockPool::Block> blocks;
  int64_t taken_in = 0;  // tokens whose keys and values are in the blocks
  BlockPool::Link link = BlockPool::kStart;
  int64_t published = 0;  // blocks

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  int64_t left() const { return size() - taken_in; }
  int64_t next_index() const { return request.first_index + size() - prompt; }  // of the next token, for the sampler
  bool scores_prompt() const { return request.echo && request.logprobs >= 0; }
};

// A row of the step whose logits are wanted.
struct Wanted {
  Sequence* sequence;
  int32_t row;                                                     // in the step
  int64_t position;                                                // in the sequence
  bool draws() const { return position + 1 >= sequence->prompt; }  // a new token; else one of the prompt is scored
};

}  // namespace

struct Engine::Implementation {
  const ModelConfig config;
  const EngineOptions options;
  PagedModel model;
  BlockPool pool;
  std::deque<std::unique_ptr<Sequence>> waiting, running;  // each in the order of arrival
  std::vector<int64_t> free_slots;
  Id last_id = 0;
  bool stepping = false;
  EngineStatistics counted;
  double model_seconds = 0;  // of the step, with the callbacks

  std::vector<TokenRow> rows;
  std::vector<Wanted> wanted;
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
        model(c, layout, target, options.tokens_of_step, {options.blocks, kBlockTokens, options.most_running},
              options.known_tokens),
        pool(options.blocks) {
    for (int64_t slot = options.most_running; slot-- > 0;) free_slots.push_back(slot);
    for (const Parameter& p : parameter_table(config)) {
      const bool looked_up =
          p.group == LearningRateGroup::embedding && !(config.tied_head && p.name == "token_embedding.weight");
      weight_bytes += static_cast<double>((looked_up ? p.shape.last() : p.shape.elements()) *
                                          static_cast<int64_t>(size_of(dtype_of(target.precision))));
    }
    position_bytes = static_cast<double>(block_bytes(config, target)) / kBlockTokens;
  }

  // Whether nothing can follow the last token.
  static bool is_complete(const Sequence& s, int64_t context) {
    return s.size() - s.prompt >= s.request.max_tokens || s.size() > context;
  }

  void release(Sequence& s) {
    // The last block becomes free first, so that of a chain the end is lost before the beginning.
    for (size_t i = s.blocks.size(); i-- > 0;) pool.release(s.blocks[i]);
    s.blocks.clear();
    if (s.slot != kNoSlot) free_slots.push_back(s.slot);
    s.slot = kNoSlot;
    s.taken_in = s.published = 0, s.link = BlockPool::kStart;
  }

  void remove_ended() {
    for (auto* list : {&waiting, &running})
      std::erase_if(*list, [&](const std::unique_ptr<Sequence>& s) {
        if (s->ended) release(*s);
        return s->ended;
      });
  }

  // The sequence that came last of those that run goes back to the queue, in front of all that came later.
  void preempt_last() {
    release(*running.back());
    waiting.push_front(std::move(running.back()));
    running.pop_back();
    ++counted.preemptions;
  }

  // Gives a sequence blocks for the `count` tokens that it takes in next, or for as many as there are blocks for; takes
  // blocks from sequences that came later where not even one would fit. Returns how many tokens fit.
  int64_t make_room(Sequence& s, int64_t count) {
    const auto room = [&] { return static_cast<int64_t>(s.blocks.size()) * kBlockTokens - s.taken_in; };
    const auto before = static_cast<int64_t>(s.blocks.size());
    while (room() < count) {
      if (pool.free() == 0) {
        if (room() > 0 || running.back().get() == &s) break;
        preempt_last();
        continue;
      }
      s.blocks.push_back(pool.take());
    }
    const auto all = static_cast<int64_t>(s.blocks.size());
    if (all > before) model.set_blocks(s.slot, before, std::span(s.blocks).subspan(static_cast<size_t>(before)));
    return std::min(count, room());
  }

  // Puts the next `count` tokens of a sequence into the step. From now on others may share what the step makes of them:
  // in each layer all keys and values are written before any are read.
  void schedule(Sequence& s, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t position = s.taken_in + i;
      const bool draws = position + 1 == s.size() && !is_complete(s, config.context);
      const bool scores = s.scores_prompt() && position + 1 < s.prompt && position + 1 >= s.echoed;
      if (draws || scores) wanted.push_back({&s, static_cast<int32_t>(rows.size()), position});
      rows.push_back(
          {s.tokens[static_cast<size_t>(position)], static_cast<int32_t>(position), static_cast<int32_t>(s.slot)});
    }
    s.taken_in += count;
    if (!options.prefix_cache) return;
    for (; (s.published + 1) * kBlockTokens <= s.taken_in; ++s.published)
      s.link = pool.publish(s.blocks[static_cast<size_t>(s.published)], s.link,
                            s.tokens.data() + s.published * kBlockTokens);
  }

  // Lets a sequence begin with the blocks that are known already, but for its last token, whose logits are wanted.
  void share_prefix(Sequence& s) {
    if (!options.prefix_cache || s.scores_prompt()) return;
    while ((s.published + 1) * kBlockTokens < s.size()) {
      const BlockPool::Block block = pool.find(s.link, s.tokens.data() + s.published * kBlockTokens);
      if (block == BlockPool::kNoBlock) break;
      pool.hold(block);
      s.blocks.push_back(block);
      s.link = pool.link(block);
      ++s.published;
    }
    s.taken_in = s.published * kBlockTokens;
    if (s.published > 0) model.set_blocks(s.slot, 0, s.blocks);
  }

  // Begins with the sequence that has waited longest; false where there is no room for it.
  bool admit() {
    if (waiting.empty() || free_slots.empty()) return false;
    Sequence& s = *waiting.front();
    s.slot = free_slots.back();
    free_slots.pop_back();
    share_prefix(s);
    // It waits until its blocks are there for all its tokens: otherwise it would soon have to give them back.
    if (ceil_div(s.size(), kBlockTokens) - s.published > pool.free()) {
      release(s);
      return false;
    }
    if (!s.begun) counted.prompt_tokens += s.prompt, counted.cached_tokens += s.taken_in;
    s.begun = true;
    running.push_back(std::move(waiting.front()));
    waiting.pop_front();
    return true;
  }

  // Fills the step: each sequence past its prompt gets one row, the rest of the budget goes to prompts.
  void plan() {
    rows.clear();
    wanted.clear();
    int64_t budget = options.tokens_of_step;
    for (const auto& s : running) budget -= s->left() == 1;
    for (size_t i = 0; i < running.size(); ++i) {  // make_room() may shorten the list
      Sequence& s = *running[i];
      const bool one = s.left() == 1;
      const int64_t count = one ? 1 : std::min(budget, s.left());
      if (count == 0) continue;
      const int64_t fits = make_room(s, count);
      if (fits == 0) {  // the last one of all, and no block is free
        preempt_last();
        break;
      }
      if (!one) budget -= fits;
      schedule(s, fits);
    }
    while (budget > 0 && admit()) {
      Sequence& s = *running.back();
      const int64_t fits = make_room(s, std::min(budget, s.left()));
      budget -= fits;
      schedule(s, fits);
    }
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
    if (s.ended) return;
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
    s.tokens.push_back(output.id);
    if (s.request.sampling.penalizes()) ++s.counts[output.id];
    ++counted.new_tokens;
    hand_on(s, output);
    if (!s.ended && is_complete(s, config.context)) finish(s, Finish::length);
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
      const Wanted& w = wanted[first + i];
      const SamplingOptions& o = w.sequence->request.sampling;
      if (needs_logits(w))
        wants_logits = true;
      else
        options_of_rows[i] = {o.temperature, o.top_p, o.min_p, o.top_k, o.seed, w.sequence->next_index()};
    }
    return options_of_rows;
  }

  // Logits of all wanted rows, so many at once, and what follows from them.
  void choose() {
    const int64_t vocabulary = config.vocabulary;
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
          chosen = choose_token(s.request, s.counts, s.next_index(), row, tokens, scratch[static_cast<size_t>(rank)]);
        else
          chosen = score_token(s.request, s.tokens[static_cast<size_t>(w.position) + 1], row, tokens);
      });
      for (size_t i = 0; i < numbers.size(); ++i) take(wanted[first + i], all[i]);
    }
    for (const auto& s : running)  // that were only to be read
      if (!s->ended && s->left() == 0) {
        echo_until(*s, s->prompt);
        if (!s->ended) finish(*s, Finish::length);
      }
  }

  bool step() {
    if (running.empty() && waiting.empty()) return false;
    const auto begin = Clock::now();
    model_seconds = 0;
    stepping = true;
    plan();
    const auto run = Clock::now();
    model.run(rows);
    model_seconds += seconds_since(run);
    choose();
    stepping = false;
    remove_ended();
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
  const size_t element = !target.cuda ? sizeof(float) : size_of(dtype_of(target.precision));
  return static_cast<size_t>(2 * c.layers * c.kv_heads * c.head_size * kBlockTokens) * element;
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

void Engine::bind(const Arena& arena) {
  implementation_->arena = &arena;
  implementation_->scratch.resize(static_cast<size_t>(arena.device().threads().size()));
  implementation_->model.bind(arena);
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
  e.waiting.push_back(std::move(s));
  return e.last_id;
}

void Engine::cancel(Id id) {
  Implementation& e = *implementation_;
  for (auto* list : {&e.waiting, &e.running})
    for (const auto& s : *list)
      if (s->id == id) s->ended = true;
  if (!e.stepping) e.remove_ended();
}

bool Engine::step() { return implementation_->step(); }

EngineStatistics Engine::statistics() const {
  const Implementation& e = *implementation_;
  EngineStatistics s = e.counted;
  s.running = static_cast<int64_t>(e.running.size());
  s.waiting = static_cast<int64_t>(e.waiting.size());
  s.blocks_total = e.pool.total();
  s.blocks_used = e.pool.total() - e.pool.free();
  s.blocks_cached = e.pool.cached();
  return s;
}

double Engine::bytes_per_token(double position) const {
  return implementation_->weight_bytes + position * implementation_->position_bytes;
}

}  // namespace llm
