// The inference engine: what a request gets depends on nothing but the request, blocks come back, nobody is passed over.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "llm/base/error.h"
#include "llm/base/quantize_blocks.h"
#include "llm/device/cpu.h"
#include "llm/infer/batch.h"
#include "llm/infer/engine.h"
#include "test/helpers.h"
#include "test/small_model.h"

using namespace llm;
using namespace test;

namespace {

// What a request got, as bytes.
struct Answer {
  std::vector<TokenOutput> tokens;
  std::vector<std::pair<Finish, std::string>> ends;

  std::string bytes() const {
    std::string all;
    const auto add = [&](auto value) { all.append(reinterpret_cast<const char*>(&value), sizeof value); };
    for (const TokenOutput& t : tokens) {
      add(t.id), add(t.position), add(t.logprob), add(t.alternatives.size());
      for (const auto& [id, logprob] : t.alternatives) add(id), add(logprob);
    }
    for (const auto& [why, error] : ends) add(why), all += error;
    return all;
  }
  std::vector<int32_t> ids() const {
    std::vector<int32_t> all;
    for (const TokenOutput& t : tokens) all.push_back(t.id);
    return all;
  }
};

struct Rig {
  ModelConfig config;
  PersistentLayout layout;
  ThreadTeam threads;
  CpuDevice device{threads};
  Engine engine;
  Arena arena;

  explicit Rig(const ModelConfig& c, const EngineOptions& options = {}, int team = 1, std::optional<DType> weights = {},
               std::optional<DType> cache = {})
      : config(c),
        layout(layout_of(c, DType::fp32, weights)),
        threads(team),
        engine(c, layout, {.threads = team, .weights = weights, .cache = cache}, options),
        arena(engine.arena_bytes(), device) {
    engine.bind(arena);
    fill_weights(config, layout, arena);
  }
  Engine::Id submit(const Request& request, Answer& answer) {
    return engine.submit(request,
                         {[&](const TokenOutput& t) { answer.tokens.push_back(t); },
                          [&](Finish why, const std::string& error) { answer.ends.emplace_back(why, error); }});
  }
  void run() {
    while (engine.step()) {
    }
    const EngineStatistics s = engine.statistics();
    CHECK(s.running + s.waiting + s.blocks_used == 0);
  }
  Answer answer(const Request& request) {
    Answer a;
    submit(request, a);
    run();
    return a;
  }
};

// Requests of all kinds, many of which begin with the same tokens.
std::vector<Request> requests_of(const ModelConfig& config, size_t count) {
  const Random random(7, stream_of("test/requests"));
  const std::vector<int32_t> common = random_tokens(config.context, config.vocabulary, 1);
  std::vector<Request> requests;
  for (size_t i = 0; i < count; ++i) {
    auto number = [&, n = i * 16](uint64_t range) mutable { return static_cast<int64_t>(random.bits(n++) % range); };
    Request r;
    const auto length = 1 + number(static_cast<uint64_t>(config.context));
    r.prompt = random_tokens(length, config.vocabulary, 100 + i);
    if (i % 3) std::copy_n(common.begin(), length * number(4) / 3, r.prompt.begin());
    r.max_tokens = number(20);
    r.sampling = {.temperature = i % 4 ? 0.9 : 0, .top_k = i % 5 ? 0 : 7, .top_p = i % 7 ? 1 : 0.8, .seed = i};
    if (i % 6 == 1) r.sampling.min_p = 0.05;
    if (i % 6 == 2) r.sampling.repetition = 1.3, r.sampling.frequency = 0.2, r.sampling.bias = {{3, 2.0f}, {9, -90.0f}};
    if (i % 4 == 1) r.stop_tokens = {static_cast<int32_t>(i % 61), 5, 6};
    r.logprobs = static_cast<int>(i % 5) - 1;
    r.echo = i % 8 >= 6;
    requests.push_back(r);
  }
  return requests;
}

std::vector<Answer> answers_alone(const ModelConfig& config, const std::vector<Request>& requests) {
  Rig rig(config, {.prefix_cache = false});
  std::vector<Answer> alone;
  for (const Request& r : requests) alone.push_back(rig.answer(r));
  return alone;
}

}  // namespace

TEST_CASE("engine: keys and values in bf16 and 8 bits give the same bytes alone and among others, and nearly fp32's") {
  ModelConfig config = small_config("llama");
  config.context = 300;  // attention in two parts
  const std::vector<Request> requests = requests_of(config, 16);
  for (const int64_t head_size : {6, 64}) {  // 64: widened by vectors
    config.head_size = head_size;
    Rig whole(config);
    for (const DType cache : {DType::bf16, DType::int8}) {
      INFO("heads of ", head_size, ", ", name_of(cache));
      Rig alone(config, {.prefix_cache = false}, 1, {}, cache),
          among(config, {.most_running = 16, .tokens_of_step = 40, .blocks = 40}, 3, {}, cache);
      std::vector<Answer> together(requests.size());
      for (size_t i = 0; i < requests.size(); ++i) among.submit(requests[i], together[i]);
      among.run();
      for (size_t i = 0; i < requests.size(); ++i) CHECK(alone.answer(requests[i]).bytes() == together[i].bytes());
      Request scored = requests[0];
      scored.prompt = random_tokens(290, config.vocabulary, 9);
      scored.max_tokens = 0, scored.logprobs = 0, scored.echo = true;
      const Answer near = alone.answer(scored), expected = whole.answer(scored);
      double difference = 0;
      for (size_t i = 1; i < expected.tokens.size(); ++i)
        difference = std::max(difference, std::fabs(double{near.tokens[i].logprob} - expected.tokens[i].logprob));
      CHECK(difference > 0);
      CHECK(difference < 0.3);
      const auto block_bytes = [&](std::optional<DType> type) { return Engine::block_bytes(config, {.cache = type}); };
      if (head_size == 64) CHECK(block_bytes(cache) < block_bytes({}));  // a block of 32 is longer than a head of 6
    }
  }
}

TEST_CASE("engine: packed weights give the bytes of fp32 weights that lie as in training, rounded alike") {
  for (const std::string kind : {"gpt2", "llama", "mix", "experts", "phi"})
    for (const DType weights : {DType::fp32, DType::bf16, DType::int8, DType::int4}) {
      INFO(kind, " in ", name_of(weights));
      const ModelConfig config = small_config(kind);
      const std::vector<Request> requests = requests_of(config, 12);
      Rig whole(config);
      const Parameter* plain = nullptr;
      for (const std::vector<Parameter> table = parameter_table(config); const Parameter& p : table) {
        if (!is_matrix_of_weights(p)) {
          plain = &p;
          continue;
        }
        const int64_t columns = p.shape.last();
        auto* const values = reinterpret_cast<float*>(whole.arena.data() + whole.layout.offset(p.name));
        for (int64_t i = 0; i < p.shape.rows(); ++i) round_row(weights, values + i * columns, columns);
      }
      CHECK(plain != nullptr);  // norms are not rounded
      Rig reduced(config, {}, 1, weights), among(config, {.most_running = 12}, 3, weights);
      std::vector<Answer> together(requests.size());
      for (size_t i = 0; i < requests.size(); ++i) among.submit(requests[i], together[i]);
      among.run();
      for (size_t i = 0; i < requests.size(); ++i) {
        const Answer expected = whole.answer(requests[i]);
        CHECK(reduced.answer(requests[i]).bytes() == expected.bytes());
        CHECK(together[i].bytes() == expected.bytes());
      }
      if (weights != DType::fp32) CHECK(reduced.arena.bytes() < whole.arena.bytes());
    }
}

TEST_CASE("engine: with activations in 8 bits a request gets the same bytes alone and among others") {
  for (const std::string kind : {"gpt2", "llama", "experts"})
    for (const DType weights : {DType::w8a8, DType::w4a8}) {
      INFO(kind, " in ", name_of(weights));
      const ModelConfig config = small_config(kind);
      const std::vector<Request> requests = requests_of(config, 12);
      Rig alone(config, {.prefix_cache = false}, 1, weights),
          among(config, {.most_running = 12, .tokens_of_step = 40}, 3, weights);
      std::vector<Answer> together(requests.size());
      for (size_t i = 0; i < requests.size(); ++i) among.submit(requests[i], together[i]);
      among.run();
      for (size_t i = 0; i < requests.size(); ++i) CHECK(alone.answer(requests[i]).bytes() == together[i].bytes());
    }
}

TEST_CASE("engine: a request gets the same bytes alone, among others, in pieces, after preemption, on any threads") {
  for (const std::string kind : {"gpt2", "llama", "qwen3", "mix", "experts", "phi", "gemma"}) {
    CAPTURE(kind);
    ModelConfig config = small_config(kind);
    if (kind == "llama") config.context = 300;  // attention in two parts
    const std::vector<Request> requests = requests_of(config, 64);
    const std::vector<Answer> alone = answers_alone(config, requests);
    const int64_t of_one = (config.context + kBlockTokens - 1) / kBlockTokens;
    struct Way {
      EngineOptions options;
      int threads = 1;
      bool reversed = false;
      int64_t arrivals = 1000;  // a step
    };
    const std::vector<Way> ways = {
        {{.blocks = 64 * of_one}},
        {{.blocks = 64 * of_one}, 2, true},
        {{.blocks = 64 * of_one, .prefix_cache = false}, 3, false, 3},
        {{.most_running = 5, .tokens_of_step = 7, .blocks = 4 * of_one}, 1, false, 2},
        {{.most_running = 16, .tokens_of_step = 33, .blocks = of_one + 2}, 2, true},
        {{.most_running = 16, .tokens_of_step = 40, .blocks = of_one, .prefix_cache = false}},
        {{.most_running = 2, .tokens_of_step = 30, .blocks = 2 * of_one, .drafts = 3}},
        {{.most_running = 1, .tokens_of_step = 9, .blocks = of_one, .prefix_cache = false, .drafts = 7}, 2}};
    int64_t preemptions = 0, accepted = 0;
    for (size_t way = 0; way < ways.size(); ++way) {
      CAPTURE(way);
      const Way& w = ways[way];
      Rig rig(config, w.options, w.threads);
      for (int round = 0; round < 2; ++round) {  // the second one finds prefixes in the blocks
        std::vector<Answer> answers(requests.size());
        int64_t arrived = 0;
        for (size_t n = 0; n < requests.size(); ++n) {
          const size_t i = w.reversed ? requests.size() - 1 - n : n;
          rig.submit(requests[i], answers[i]);
          if (++arrived % w.arrivals == 0) rig.engine.step();
        }
        rig.run();
        int different = 0;
        for (size_t i = 0; i < requests.size(); ++i) different += answers[i].bytes() != alone[i].bytes();
        CHECK(different == 0);
      }
      const EngineStatistics s = rig.engine.statistics();
      preemptions += s.preemptions, accepted += s.accepted_tokens;
      CHECK((s.drafted_tokens > s.accepted_tokens) == (w.options.drafts > 0));
      CHECK((s.cached_tokens > 0) == w.options.prefix_cache);
      if (!w.options.prefix_cache) CHECK(s.blocks_cached == 0);
    }
    CHECK(preemptions > 0);
    CHECK(accepted > 0);
  }
}

TEST_CASE("engine: cancelled requests leave no block behind, and nothing to the others") {
  const ModelConfig config = small_config("qwen3");
  const std::vector<Request> requests = requests_of(config, 60);
  const std::vector<Answer> alone = answers_alone(config, requests);
  Rig rig(config, {.most_running = 8, .tokens_of_step = 20, .blocks = 9}, 2);
  std::vector<Answer> answers(requests.size());
  std::vector<Engine::Id> ids;
  std::vector<bool> cancelled(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    if (i % 5 == 0) {  // within its own call
      cancelled[i] = true;
      ids.push_back(rig.engine.submit(requests[i], {[&, i](const TokenOutput& t) {
                                                      answers[i].tokens.push_back(t);
                                                      rig.engine.cancel(ids[i]);
                                                    },
                                                    {}}));
    } else {
      ids.push_back(rig.submit(requests[i], answers[i]));
    }
  }
  for (size_t step = 0; rig.engine.step(); ++step)
    if (const size_t i = 3 + 7 * step; i < requests.size() && answers[i].ends.empty()) {
      rig.engine.cancel(ids[i]);
      rig.engine.cancel(ids[i]);  // no more than once
      cancelled[i] = true;
    }
  rig.run();
  int whole = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    if (i % 5 == 0) CHECK(answers[i].tokens.size() <= 1);
    if (cancelled[i]) continue;
    ++whole;
    CHECK(answers[i].bytes() == alone[i].bytes());
  }
  CHECK(whole > 30);
  rig.engine.cancel(ids[1]);   // long ended
  rig.engine.cancel(1234567);  // never there
  CHECK(rig.engine.statistics().blocks_total == 9);
}

TEST_CASE("engine: in the order of arrival, however scarce blocks are") {
  const ModelConfig config = small_config("llama");
  for (const int64_t blocks : {3, 4, 64}) {
    CAPTURE(blocks);
    Rig rig(config, {.most_running = 4, .tokens_of_step = 9, .blocks = blocks});
    std::vector<size_t> begun;
    std::vector<bool> has_begun(40);
    for (size_t i = 0; i < 40; ++i)
      rig.engine.submit({.prompt = random_tokens(1 + static_cast<int64_t>(i * 7 % 20), config.vocabulary, i),
                         .max_tokens = 15,
                         .sampling = {.seed = i}},
                        {[&, i](const TokenOutput&) {
                           if (!has_begun[i]) begun.push_back(i);
                           has_begun[i] = true;
                         },
                         {}});
    rig.run();
    REQUIRE(begun.size() == 40);
    // Prompts that share their steps may end in another order than they began.
    for (size_t i = 0; i < begun.size(); ++i) CHECK(begun[i] < i + 4);
  }
}

TEST_CASE("engine: what the options of a request mean") {
  const ModelConfig config = small_config("gpt2");
  Rig rig(config);
  const std::vector<int32_t> prompt = random_tokens(9, config.vocabulary, 5);
  const Answer plain = rig.answer({.prompt = prompt, .max_tokens = 12, .sampling = {.seed = 4}});
  REQUIRE(plain.tokens.size() == 12);
  CHECK(plain.ends == std::vector<std::pair<Finish, std::string>>{{Finish::length, ""}});
  CHECK(plain.tokens[0].position == 9);
  CHECK(std::isnan(plain.tokens[0].logprob));

  SUBCASE("a stop token ends the text and is not handed on") {
    const std::vector<int32_t> ids = plain.ids();
    const Answer stopped =
        rig.answer({.prompt = prompt, .max_tokens = 12, .sampling = {.seed = 4}, .stop_tokens = {ids[5]}});
    CHECK(stopped.ids() == std::vector<int32_t>(ids.begin(), std::find(ids.begin(), ids.end(), ids[5])));
    CHECK(stopped.ends[0].first == Finish::stop);
  }
  SUBCASE("a text goes on in a new request") {
    std::vector<int32_t> longer = prompt, ids = plain.ids();
    longer.insert(longer.end(), ids.begin(), ids.begin() + 5);
    const Answer rest = rig.answer({.prompt = longer, .max_tokens = 7, .sampling = {.seed = 4}, .first_index = 5});
    CHECK(rest.ids() == std::vector<int32_t>(ids.begin() + 5, ids.end()));
  }
  SUBCASE("the context ends a text") {
    const Answer full = rig.answer({.prompt = prompt, .max_tokens = 1000});
    CHECK(full.tokens.size() == 40 - 9 + 1);
    CHECK(full.ends[0].first == Finish::length);
    CHECK(rig.answer({.prompt = random_tokens(40, 61, 1), .max_tokens = 1000}).tokens.size() == 1);
  }
  SUBCASE("log-probabilities add up, the likeliest first, and echo scores the prompt as generation does") {
    const Request request{
        .prompt = prompt, .max_tokens = 3, .sampling = {.temperature = 0}, .logprobs = 61, .echo = true};
    const Answer all = rig.answer(request);
    REQUIRE(all.tokens.size() == 12);
    CHECK(std::isnan(all.tokens[0].logprob));
    for (size_t i = 1; i < 12; ++i) {
      const TokenOutput& t = all.tokens[i];
      CHECK(t.position == static_cast<int64_t>(i));
      REQUIRE(t.alternatives.size() == 61);
      double sum = 0;
      for (const auto& [id, logprob] : t.alternatives) {
        sum += std::exp(static_cast<double>(logprob));
        if (id == t.id) CHECK(logprob == t.logprob);
      }
      CHECK(sum == doctest::Approx(1).epsilon(1e-5));
      CHECK(std::is_sorted(t.alternatives.begin(), t.alternatives.end(),
                           [](const auto& a, const auto& b) { return a.second > b.second; }));
      if (i >= 9) CHECK(t.id == t.alternatives[0].first);
    }
    // The same tokens as a prompt: their scores are the same bits.
    Request scored = request;
    for (size_t i = 9; i < 12; ++i) scored.prompt.push_back(all.tokens[i].id);
    scored.max_tokens = 0;
    const Answer again = rig.answer(scored);
    REQUIRE(again.tokens.size() == 12);
    for (size_t i = 1; i < 12; ++i) CHECK(again.tokens[i].logprob == all.tokens[i].logprob);
    CHECK(again.ends[0].first == Finish::length);
    CHECK(rig.answer({.prompt = {7}, .max_tokens = 0, .logprobs = 0, .echo = true}).ids() == std::vector<int32_t>{7});
    CHECK(rig.answer({.prompt = {7, 8}, .max_tokens = 0, .echo = true}).ids() == std::vector<int32_t>{7, 8});
    CHECK(rig.answer({.prompt = {7, 8}, .max_tokens = 0}).tokens.empty());
  }
  SUBCASE("bias and penalties change the logits, and not the log-probabilities of the model") {
    const Request greedy{.prompt = prompt, .max_tokens = 1, .sampling = {.temperature = 0}, .logprobs = 61};
    const TokenOutput first = rig.answer(greedy).tokens[0];
    const auto second = first.alternatives[1];
    Request biased = greedy;
    biased.sampling.bias = {{first.id, -std::numeric_limits<float>::infinity()}};
    const TokenOutput other = rig.answer(biased).tokens[0];
    CHECK(other.id == second.first);
    CHECK(other.logprob == second.second);
    // A presence penalty that is large enough makes every token of the text a new one.
    const Answer different =
        rig.answer({.prompt = prompt, .max_tokens = 25, .sampling = {.temperature = 0, .presence = 1e6}});
    std::vector<int32_t> ids = different.ids();
    std::sort(ids.begin(), ids.end());
    CHECK(std::adjacent_find(ids.begin(), ids.end()) == ids.end());
    // A huge repetition penalty keeps a likely token of the prompt away.
    Request repeated = greedy;
    repeated.prompt = {first.id, prompt[0]};
    repeated.sampling.bias = {{first.id, 50.0f}};
    CHECK(rig.answer(repeated).tokens[0].id == first.id);
    CHECK(rig.answer({.prompt = {1, 2, 3}, .max_tokens = 1, .sampling = {.min_p = 1}, .logprobs = 1}).tokens[0].id ==
          rig.answer({.prompt = {1, 2, 3}, .max_tokens = 1, .sampling = {.temperature = 0}}).tokens[0].id);
  }
  SUBCASE("what cannot be served is refused, and damaged weights end the request alone") {
    Answer none;
    const auto refusal = [&](const Request& r) { return error_of([&] { rig.submit(r, none); }); };
    CHECK(has(refusal({}), "at least one token"));
    CHECK(has(refusal({.prompt = {1, 61}}), "token 61"));
    CHECK(has(refusal({.prompt = random_tokens(41, 61, 1)}), "41 tokens"));
    CHECK(has(refusal({.prompt = {1}, .sampling = {.temperature = -1}}), "temperature"));
    CHECK(has(refusal({.prompt = {1}, .sampling = {.min_p = 2}}), "min-p"));
    CHECK(has(refusal({.prompt = {1}, .sampling = {.repetition = 0}}), "repetition-penalty"));
    CHECK(has(refusal({.prompt = {1}, .sampling = {.bias = {{61, 1.0f}}}}), "logit-bias"));
    Rig tight(config, {.blocks = 2});
    CHECK(has(error_of([&] { tight.submit({.prompt = {1}, .max_tokens = 33}, none); }), "3 blocks"));
    CHECK(tight.answer({.prompt = {1}, .max_tokens = 32}).tokens.size() == 32);
    CHECK(none.tokens.empty());
    CHECK_FALSE(rig.engine.step());
    auto* weight = reinterpret_cast<float*>(rig.arena.data() + rig.layout.offset("final_norm.weight"));
    weight[0] = NAN;
    const Answer damaged = rig.answer({.prompt = prompt});
    CHECK(damaged.tokens.empty());
    CHECK(damaged.ends[0].first == Finish::error);
    CHECK(has(damaged.ends[0].second, "damaged"));
    CHECK(rig.answer({.prompt = prompt, .logprobs = 0, .echo = true}).ends[0].first == Finish::error);
  }
}

TEST_CASE("engine: as many blocks as a number of bytes has room for") {
  for (const std::string kind : {"gpt2", "llama"}) {
    const ModelConfig config = small_config(kind);
    const PersistentLayout layout = layout_of(config);
    const Target target{.threads = 2};
    const auto bytes = [&](int64_t blocks) { return Engine(config, layout, target, {.blocks = blocks}).arena_bytes(); };
    CHECK(Engine::blocks_within(bytes(1) - 1, config, layout, target) == 0);
    for (const int64_t blocks : {1, 2, 3, 50, 1001}) {
      CHECK(Engine::blocks_within(bytes(blocks), config, layout, target) >= blocks);  // places are rounded up
      const int64_t fit = Engine::blocks_within(bytes(blocks) + 700, config, layout, target);
      CHECK(bytes(fit) <= bytes(blocks) + 700);
      CHECK(bytes(fit + 1) > bytes(blocks) + 700);
    }
    CHECK(bytes(1001) - bytes(1) <= 1000 * Engine::block_bytes(config, target) + 256 * 4);
  }
}

TEST_CASE("engine: tokens that the tokenizer does not know are neither drawn nor alternatives") {
  const ModelConfig config = small_config("qwen3");
  Rig rig(config, {.known_tokens = 20}), whole(config);
  const Request request{.prompt = {1, 55, 3}, .max_tokens = 30, .logprobs = 61};
  const Answer answer = rig.answer(request);
  REQUIRE(answer.tokens.size() == 30);
  for (const TokenOutput& t : answer.tokens) {
    CHECK(t.id < 20);
    CHECK(t.alternatives.size() == 20);
    for (const auto& [id, logprob] : t.alternatives) CHECK(id < 20);
  }
  // Their share of the probability is not given to the others.
  const Answer of_all = whole.answer(request);
  for (const auto& [id, logprob] : of_all.tokens[0].alternatives)
    if (id == answer.tokens[0].id) CHECK(logprob == answer.tokens[0].logprob);
}

TEST_CASE("drafts: what followed the last tokens where they came before") {
  CHECK(draft_by_lookup({1, 2, 3, 4, 5, 1, 2}, 3) == std::vector<int32_t>{3, 4, 5});
  CHECK(draft_by_lookup({1, 2, 3, 1, 2, 9, 1, 2}, 5) == std::vector<int32_t>{9, 1, 2});     // the last time
  CHECK(draft_by_lookup({7, 1, 2, 3, 8, 1, 2, 9, 7, 1, 2}, 1) == std::vector<int32_t>{3});  // the longest match
  CHECK(draft_by_lookup({4, 4, 4, 4}, 3) == std::vector<int32_t>{4});
  CHECK(draft_by_lookup({1, 2, 3, 4}, 3).empty());
  CHECK(draft_by_lookup({1, 2, 1, 2}, 0).empty());
  CHECK(draft_by_lookup({5}, 3).empty());
  CHECK(draft_by_lookup({}, 3).empty());
}

TEST_CASE("block pool: blocks are shared by their chains, and the oldest contents go first") {
  BlockPool pool(4);
  const auto tokens = [](int32_t seed) {
    std::vector<int32_t> all(kBlockTokens);
    for (size_t i = 0; i < all.size(); ++i) all[i] = seed + static_cast<int32_t>(i);
    return all;
  };
  const std::vector<int32_t> a = tokens(1), b = tokens(2);
  const BlockPool::Block first = pool.take(), second = pool.take();
  const BlockPool::Link link = pool.publish(first, BlockPool::kStart, a.data());
  pool.publish(second, link, b.data());
  CHECK(pool.find(BlockPool::kStart, a.data()) == first);
  CHECK(pool.find(link, b.data()) == second);
  CHECK(pool.find(BlockPool::kStart, b.data()) == BlockPool::kNoBlock);  // not behind the same tokens
  CHECK(pool.find(link, a.data()) == BlockPool::kNoBlock);
  CHECK(pool.free() == 2);

  // The same contents again: the first block stays known, and the chain goes on behind it.
  const BlockPool::Block copy = pool.take();
  CHECK(pool.publish(copy, BlockPool::kStart, a.data()) == link);
  pool.release(copy);
  CHECK(pool.cached() == 0);

  pool.hold(first);
  pool.release(first);
  CHECK(pool.free() == 2);
  pool.release(second), pool.release(first);
  CHECK(pool.free() == 4);
  CHECK(pool.cached() == 2);
  pool.hold(second);  // out of the list again
  CHECK(pool.cached() == 1);
  CHECK(pool.take() != first);  // those without contents come first
  CHECK(pool.take() != first);
  CHECK(pool.take() == first);
  CHECK(pool.find(BlockPool::kStart, a.data()) == BlockPool::kNoBlock);
  CHECK(pool.find(link, b.data()) == second);
  CHECK(pool.take() == BlockPool::kNoBlock);
  CHECK(pool.free() == 0);
}
