// Sampling, generation with the key-value cache against full recomputation, evaluation, and models loaded from disk.
#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <numeric>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/random.h"
#include "llm/checkpoint/loaded_model.h"
#include "llm/device/cpu.h"
#include "llm/infer/evaluate.h"
#include "llm/infer/generator.h"
#include "llm/model/huggingface.h"
#include "llm/model/parameters.h"
#include "test/helpers.h"
#include "test/small_model.h"

using namespace llm;
using namespace test;
namespace fs = std::filesystem;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kThreads = 2;

struct Rig {
  ModelConfig config;
  PersistentLayout layout;
  ThreadTeam threads{kThreads};
  CpuDevice device{threads};
  Generator generator;
  Arena arena;

  explicit Rig(const ModelConfig& c)
      : config(c),
        layout(layout_of(c)),
        generator(c, layout, {.threads = kThreads}),
        arena(generator.arena_bytes(), device) {
    generator.bind(arena);
    fill_weights(config, layout, arena);
  }
  std::vector<int32_t> generate(const std::vector<int32_t>& prompt, int64_t count, const SamplingOptions& sampling,
                                int32_t stop = -1) {
    std::vector<int32_t> ids;
    generator.generate(prompt, count, sampling, stop, [&](int32_t id) {
      ids.push_back(id);
      return true;
    });
    return ids;
  }
};

// The logits by evaluation's program for exactly these tokens, in an arena of its own.
class Recomputation {
 public:
  explicit Recomputation(const ModelConfig& config) : config_(config) {}

  const float* logits(const std::vector<int32_t>& tokens) {
    auto& run = runs_[tokens.size()];
    if (!run) run = std::make_unique<Run>(config_, static_cast<int64_t>(tokens.size()), device_);
    std::copy(tokens.begin(), tokens.end(), run->program.data<int32_t>(run->tokens));
    run->program.run(Phase::forward);
    return run->program.data<float>(run->logits) + (static_cast<int64_t>(tokens.size()) - 1) * config_.vocabulary;
  }

 private:
  struct Run {
    PersistentLayout layout;
    TensorId tokens = kNone, logits = kNone;
    Program program;
    Arena arena;
    Run(const ModelConfig& config, int64_t count, Device& device)
        : program(build(config, count), layout), arena(program.arena_bytes(), device) {
      program.bind(arena);
      fill_weights(config, layout, arena);
    }
    Compiled build(const ModelConfig& config, int64_t count) {
      EvaluationGraph g = build_evaluation_graph(config, 1, count);
      tokens = g.tokens, logits = g.graph.find("logits");
      layout.add(g.graph);
      return compile(g.graph, {logits}, {});
    }
  };
  const ModelConfig& config_;
  ThreadTeam threads_{1};
  CpuDevice device_{threads_};
  std::map<size_t, std::unique_ptr<Run>> runs_;
};

std::vector<int32_t> generate_by_recomputation(const ModelConfig& config, std::vector<int32_t> window, int64_t count,
                                               const SamplingOptions& sampling) {
  const auto context = static_cast<size_t>(config.context);
  Recomputation recomputation(config);
  Sampler sampler(sampling, config.vocabulary);
  std::vector<int32_t> ids;
  if (window.size() > context) window.erase(window.begin(), window.end() - static_cast<std::ptrdiff_t>(context));
  for (int64_t i = 0; i < count; ++i) {
    if (window.size() > context) window.erase(window.begin(), window.end() - static_cast<std::ptrdiff_t>(context / 2));
    ids.push_back(sampler.sample(recomputation.logits(window), i));
    window.push_back(ids.back());
  }
  return ids;
}

TokenStream stream_of_tokens(const Folder& folder, const std::vector<int32_t>& tokens, int64_t vocabulary) {
  const std::string path = folder / ("tokens" + std::to_string(tokens.size()) + ".bin");
  ShardWriter writer(path, vocabulary);
  writer.write(tokens.data(), static_cast<int64_t>(tokens.size()));
  writer.finish();
  return TokenStream({path});
}

// How often each token comes in `draws` draws.
std::vector<int> draw(const std::vector<float>& logits, const SamplingOptions& options, int draws) {
  Sampler sampler(options, static_cast<int64_t>(logits.size()));
  std::vector<int> counts(logits.size());
  for (int i = 0; i < draws; ++i) ++counts[static_cast<size_t>(sampler.sample(logits.data(), i))];
  return counts;
}

// Pearson's chi-square of the counts against the probabilities; where a probability is 0 the count must be, too.
double chi_square(const std::vector<int>& counts, const std::vector<double>& probabilities) {
  const double draws = std::accumulate(counts.begin(), counts.end(), 0.0);
  double sum = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (probabilities[i] == 0) {
      CHECK(counts[i] == 0);
      continue;
    }
    const double expected = draws * probabilities[i];
    sum += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  return sum;
}

std::vector<double> softmax(const std::vector<float>& logits, double temperature, const std::vector<bool>& kept) {
  std::vector<double> p(logits.size());
  double total = 0;
  for (size_t i = 0; i < p.size(); ++i)
    total += p[i] = kept[i] ? std::exp(static_cast<double>(logits[i]) / temperature) : 0;
  for (double& x : p) x /= total;
  return p;
}

}  // namespace

TEST_CASE("sampler: frequencies are the softmax's, of what top-k and top-p leave") {
  // Probabilities at temperature 1, in thousandths: 80, 300, 20, 400, 0, 150, 50.
  const std::vector<double> thousandths = {80, 300, 20, 400, 0, 150, 50};
  std::vector<float> logits;
  for (double t : thousandths) logits.push_back(t > 0 ? static_cast<float>(std::log(t)) : -kInfinity);
  const std::vector<bool> all = {true, true, true, true, false, true, true},
                          three = {false, true, false, true, false, true, false};
  constexpr double kBound = 24;  // with at most 5 degrees of freedom one seed in 4000 exceeds it
  CHECK(chi_square(draw(logits, {}, 20000), softmax(logits, 1, all)) < kBound);
  CHECK(chi_square(draw(logits, {.seed = 9}, 20000), softmax(logits, 1, all)) < kBound);
  CHECK(chi_square(draw(logits, {.temperature = 2}, 20000), softmax(logits, 2, all)) < kBound);
  CHECK(chi_square(draw(logits, {.top_k = 3}, 20000), softmax(logits, 1, three)) < kBound);
  // A top-p of 0.71 is 710: 400 + 300 do not reach it, 400 + 300 + 150 do.
  CHECK(chi_square(draw(logits, {.top_p = 0.71}, 20000), softmax(logits, 1, three)) < kBound);
  // top-p is a part of what top-k has left, 850: 0.8 of it is 680, which 400 + 300 reach.
  std::vector<bool> two = three;
  two[5] = false;
  CHECK(chi_square(draw(logits, {.top_k = 3, .top_p = 0.8}, 20000), softmax(logits, 1, two)) < kBound);
  CHECK(draw(logits, {.top_p = 0}, 100)[3] == 100);
  CHECK(draw(logits, {.top_k = 1}, 100)[3] == 100);
  CHECK(draw(logits, {.temperature = 0}, 100)[3] == 100);
  CHECK(draw(logits, {.temperature = 1e-300}, 100)[3] == 100);
  CHECK(draw(logits, {.top_k = 1000}, 500) == draw(logits, {}, 500));
}

TEST_CASE("sampler: a large vocabulary's nucleus, ties, and large numbers") {
  constexpr int64_t V = 5000;
  std::vector<float> logits(V);
  const Random random(1, 1);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(4 * random.normal(i));
  std::vector<size_t> order(V);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  const std::vector<double> p = softmax(logits, 1, std::vector<bool>(V, true));
  for (const double top_p : {0.3, 0.9, 0.999}) {
    size_t kept = 0;
    for (double reached = 0; reached < top_p; ++kept) reached += p[order[kept]];
    const std::vector<int> counts = draw(logits, {.top_p = top_p}, 3000);
    for (size_t i = kept; i < order.size(); ++i) CHECK(counts[order[i]] == 0);
    CHECK(counts[order[0]] > 0);
  }
  SUBCASE("of equal logits the lowest id is the likeliest") {
    const std::vector<float> equal = {1, 2, 2, 2};
    CHECK(draw(equal, {.temperature = 0}, 10)[1] == 10);
    const std::vector<int> counts = draw(equal, {.top_k = 2}, 1000);
    CHECK(counts[0] + counts[3] == 0);
    CHECK(std::min(counts[1], counts[2]) > 400);
  }
  SUBCASE("huge logits do not overflow, tiny temperatures do not divide by zero") {
    CHECK(draw({3e38f, -3e38f, 2e38f}, {.temperature = 1e-30}, 50)[0] == 50);
    CHECK(draw({-3e38f, -3.1e38f, -kInfinity}, {}, 50)[0] == 50);
    const std::vector<int> counts = draw({3e38f, -3e38f}, {.temperature = 1e300}, 1000);
    CHECK(std::min(counts[0], counts[1]) > 400);
  }
  SUBCASE("a token depends on seed and index alone") {
    Sampler a({.seed = 5}, V), b({.seed = 5}, V), c({.seed = 6}, V);
    int different = 0;
    for (int64_t i : {7, 3, 7, 0, 1000000007}) {
      const int32_t token = a.sample(logits.data(), i);
      CHECK(token == b.sample(logits.data(), i));
      different += token != c.sample(logits.data(), i);
    }
    CHECK(different > 0);
  }
}

TEST_CASE("sampler: what cannot be sampled is an error") {
  for (const double temperature : {0.0, 1.0}) {
    Sampler sampler({.temperature = temperature}, 3);
    const float nan[] = {0, NAN, 1}, infinite[] = {0, kInfinity, 1}, none[] = {-kInfinity, -kInfinity, -kInfinity};
    const float first[] = {NAN, 0, 1};
    for (const float* logits : {nan, infinite, none, first}) CHECK_THROWS_AS(sampler.sample(logits, 0), Error);
  }
  CHECK_THROWS_AS(Sampler({.temperature = -0.1}, 3), UsageError);
  CHECK_THROWS_AS(Sampler({.temperature = NAN}, 3), UsageError);
  CHECK_THROWS_AS(Sampler({.temperature = INFINITY}, 3), UsageError);
  CHECK_THROWS_AS(Sampler({.top_k = -1}, 3), UsageError);
  CHECK_THROWS_AS(Sampler({.top_p = 1.1}, 3), UsageError);
  CHECK_THROWS_AS(Sampler({.top_p = NAN}, 3), UsageError);
}

TEST_CASE("generator: the tokens are those of a full recomputation") {
  for (const std::string kind : {"gpt2", "llama", "qwen3", "mix", "experts", "phi", "gemma"}) {
    CAPTURE(kind);
    const ModelConfig config = small_config(kind);
    Rig machine(config);
    // 70 new tokens fill the context of 40 and overflow it twice; the prompts take pieces of all sizes.
    for (const int64_t length : {1, 13, 31, 40}) {
      CAPTURE(length);
      const std::vector<int32_t> prompt = random_tokens(length, config.vocabulary, static_cast<uint64_t>(length));
      for (const SamplingOptions& sampling :
           {SamplingOptions{.temperature = 0}, SamplingOptions{.temperature = 0.9, .seed = 4}}) {
        const std::vector<int32_t> ids = machine.generate(prompt, 70, sampling);
        CHECK(ids == generate_by_recomputation(config, prompt, 70, sampling));
        CHECK(machine.generate(prompt, 70, sampling) == ids);  // an earlier run has no effect
      }
    }
  }
}

TEST_CASE("generator: long prompts, pieces of 256") {
  ModelConfig config = small_config("qwen3");
  config.context = 300;
  Rig machine(config);
  for (const int64_t length : {128, 255, 297, 300, 400}) {
    CAPTURE(length);
    const std::vector<int32_t> prompt = random_tokens(length, config.vocabulary, 8);
    const SamplingOptions sampling{.temperature = 0.7, .top_k = 20, .top_p = 0.95};
    CHECK(machine.generate(prompt, 6, sampling) == generate_by_recomputation(config, prompt, 6, sampling));
  }
}

TEST_CASE("generator: where it ends") {
  ModelConfig config = small_config("llama");
  Rig machine(config);
  const std::vector<int32_t> prompt = {5, 6, 7}, all = machine.generate(prompt, 30, {});
  REQUIRE(all.size() == 30);
  CHECK(machine.generate(prompt, 0, {}).empty());
  const auto found = std::find(all.begin(), all.end(), all[10]);
  CHECK(machine.generate(prompt, 30, {}, all[10]) == std::vector<int32_t>(all.begin(), found));
  int count = 0;
  machine.generator.generate(prompt, 30, {}, -1, [&](int32_t) { return ++count < 4; });
  CHECK(count == 4);
  CHECK(has(error_of([&] { machine.generate({}, 1, {}); }), "prompt"));
  CHECK(has(error_of([&] { machine.generate({1, 61}, 1, {}); }), "token 61"));
  CHECK(has(error_of([&] { machine.generate({-1}, 1, {}); }), "token -1"));
  auto* weight = reinterpret_cast<float*>(machine.arena.data() + machine.layout.offset("final_norm.weight"));
  weight[0] = NAN;
  CHECK(has(error_of([&] { machine.generate(prompt, 1, {}); }), "nan"));

  config.context = 1;  // every token depends only on the one before it
  Rig shortest(config);
  CHECK(shortest.generate({4, 9}, 5, {.temperature = 0}).size() == 5);
}

TEST_CASE("evaluator: the mean over every token but the first, whatever the batch") {
  const Folder folder;
  const ModelConfig config = small_config("qwen3");
  const std::vector<int32_t> tokens = random_tokens(5 * 16 + 6, config.vocabulary, 1);  // 5 windows of 16 and one of 5
  const TokenStream stream = stream_of_tokens(folder, tokens, config.vocabulary);
  ThreadTeam threads(kThreads);
  CpuDevice device(threads);
  const PersistentLayout layout = layout_of(config);
  const auto evaluate = [&](int64_t batch, int64_t length, int64_t max_batches, const TokenStream& data) {
    Evaluator evaluator(config, batch, length, layout, {.threads = kThreads});
    const Arena arena(evaluator.arena_bytes(), device);
    evaluator.bind(arena);
    fill_weights(config, layout, arena);
    int64_t calls = 0, last = 0;
    const Evaluator::Result result = evaluator.run(data, max_batches, [&](int64_t done, int64_t total) {
      CHECK(done == ++calls);
      last = total;
    });
    CHECK(calls == last);
    return result;
  };

  // The loss of each token, from the logits that a generation program gives for the tokens of its window before it.
  Recomputation recomputation(config);
  std::vector<double> losses;
  for (size_t i = 1; i < tokens.size(); ++i) {
    const auto begin = static_cast<std::ptrdiff_t>((i - 1) / 16 * 16), end = static_cast<std::ptrdiff_t>(i);
    const float* logits = recomputation.logits({tokens.begin() + begin, tokens.begin() + end});
    double sum = 0;
    for (int64_t v = 0; v < config.vocabulary; ++v) sum += std::exp(static_cast<double>(logits[v]));
    losses.push_back(std::log(sum) - static_cast<double>(logits[tokens[i]]));
  }
  const double expected = std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size());
  const Evaluator::Result one = evaluate(1, 16, 0, stream);
  CHECK(one.tokens == 85);
  CHECK(one.loss == doctest::Approx(expected).epsilon(1e-5));
  for (const int64_t batch : {2, 3, 6, 64}) {
    const Evaluator::Result result = evaluate(batch, 16, 0, stream);
    CHECK(result.tokens == 85);
    CHECK(result.loss == doctest::Approx(one.loss).epsilon(1e-6));
  }
  // Three batches of one window are every second of the six windows, at 0, 32 and 64.
  const Evaluator::Result some = evaluate(1, 16, 3, stream);
  CHECK(some.tokens == 48);
  double sum = 0;
  for (size_t window : {0, 2, 4})
    for (size_t i = 0; i < 16; ++i) sum += losses[window * 16 + i];
  CHECK(some.loss == doctest::Approx(sum / 48).epsilon(1e-5));
  CHECK(evaluate(2, 16, 3, stream).tokens == 85);  // the whole stream
  CHECK(evaluate(2, 16, 100, stream).tokens == 85);
  CHECK(evaluate(2, 7, 0, stream).tokens == 85);

  CHECK(evaluate(4, 16, 0, stream_of_tokens(folder, {3, 4}, 61)).tokens == 1);
  CHECK(has(error_of([&] { evaluate(1, 16, 0, stream_of_tokens(folder, {3}, 61)); }), "two tokens"));
  CHECK(has(error_of([&] { evaluate(1, 16, 0, TokenStream()); }), "two tokens"));
  CHECK(has(error_of([&] { evaluate(1, 16, 0, stream_of_tokens(folder, {3, 4, 61}, 100)); }), "token 61 (number 2)"));
}

TEST_CASE("loaded model: weights, tokenizer and the choice of the checkpoint") {
  const Folder folder;
  ModelConfig config = small_config("gpt2");
  config.vocabulary = 257;
  const PersistentLayout layout = layout_of(config);
  ThreadTeam threads(1);
  CpuDevice device(threads);
  const Arena arena(layout.bytes(), device);
  fill_weights(config, layout, arena);
  const std::vector<Parameter> table = parameter_table(config);
  const auto save = [&](int64_t step, double val_loss) {
    CheckpointContent content;
    content.state.step = step, content.state.val_loss = val_loss;
    content.config = config, content.table = table;
    content.parameter = [&](size_t i) {
      return reinterpret_cast<const float*>(arena.data() + layout.offset(table[i].name));
    };
    content.tokenizer_json = load_tokenizer("bytes")->json();
    return save_checkpoint(folder / "run", content);
  };
  const std::string first = save(10, NAN);
  CHECK(LoadedModel(folder / "run").checkpoint().step == 10);
  save(20, 2.5);
  save(30, 2.25);
  save(40, 2.75);
  LoadedModel model(folder / "run");
  CHECK(has(model.description(), "/checkpoints/30 (step 30, val loss 2.2500)"));
  CHECK(model.config() == config);
  REQUIRE(model.tokenizer() != nullptr);
  CHECK(model.tokenizer()->vocabulary() == 257);

  const Arena& loaded = model.load(0, device);
  for (const Parameter& p : table) {
    const auto bytes = static_cast<size_t>(p.shape.elements()) * sizeof(float);
    CHECK(std::memcmp(loaded.data() + model.layout().offset(p.name), arena.data() + layout.offset(p.name), bytes) == 0);
  }
  CHECK(LoadedModel(first).checkpoint().step == 10);

  SUBCASE("a tokenizer of an unknown kind is no obstacle to ids") {
    write_file_atomically(first + "/tokenizer.json", R"({"model": {"type": "Characters", "vocab": {}, "merges": []}})");
    const LoadedModel other(first);
    CHECK(other.tokenizer() == nullptr);
    CHECK(other.has_tokenizer_file());
    CHECK(has(other.no_tokenizer(), "Characters"));
    fs::remove(first + "/tokenizer.json");
    CHECK(has(LoadedModel(first).no_tokenizer(), "no tokenizer.json"));
    write_file_atomically(first + "/tokenizer.model", "");
    CHECK(has(LoadedModel(first).no_tokenizer(), "make it of tokenizer.model"));
  }
  SUBCASE("an adapter is no model") {
    fs::create_directories(folder / "adapter");
    write_file_atomically(folder / "adapter/adapter_config.json", "{}");
    CHECK(has(error_of([&] { LoadedModel{folder / "adapter"}; }), "an adapter (LoRA) alone"));
  }
  SUBCASE("a damaged checkpoint is passed over, and said so") {
    fs::resize_file(folder / "run/checkpoints/30/model.safetensors", 100);
    const LoadedModel other(folder / "run");
    CHECK(other.checkpoint().step == 20);
    CHECK(has(other.description(), "passed over"));
  }
  SUBCASE("nothing there") {
    CHECK(has(error_of([&] { LoadedModel(folder / "missing"); }), "missing"));
    CHECK(has(error_of([&] { LoadedModel other(folder.path); }), "no model here"));
  }
}
