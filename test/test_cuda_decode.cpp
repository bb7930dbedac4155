// Generation token by token on the GPU: the products of few rows, the sampling, and the generator that joins them,
// against the CPU's. The kernels run on the test bed, or on a GPU where this file is linked with what nvcc made of
// them.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "llm/base/random.h"
#include "llm/device/cpu.h"
#include "llm/device/cuda.h"
#include "llm/graph/passes.h"
#include "llm/graph/staging.h"
#include "llm/infer/generator.h"
#include "llm/model/parameters.h"
#include "test/helpers.h"
#include "test/reference.h"
#include "test/small_model.h"

using namespace llm;
using namespace test;

namespace {

bool has_device() { return cuda_is_built_in() && count_cuda_devices() > 0; }

std::vector<double> numbers(const std::string& name, int64_t count, DType dtype, double range = 1) {
  return reference::random_values(name, count, dtype, -range, range);
}

// A generator with large made-up weights, so that the tokens depend on the whole context.
struct Rig {
  ModelConfig config;
  PersistentLayout layout;
  std::unique_ptr<Generator> generator;
  std::unique_ptr<Arena> arena;

  Rig(const ModelConfig& c, Device& device, Precision precision = Precision::fp32) : config(c) {
    layout = layout_of(c, dtype_of(precision));
    generator = std::make_unique<Generator>(c, layout, target_on(device, precision));
    arena = std::make_unique<Arena>(generator->arena_bytes(), device);
    fill_weights(c, layout, *arena);
    generator->bind(*arena);
  }
  std::vector<int32_t> generate(const std::vector<int32_t>& prompt, int64_t count, const SamplingOptions& sampling,
                                int32_t stop = -1) {
    std::vector<int32_t> ids;
    generator->generate(prompt, count, sampling, stop, [&](int32_t id) {
      ids.push_back(id);
      return true;
    });
    return ids;
  }
};

}  // namespace

TEST_CASE("cuda few rows: a row has the same bits however many are beside it") {
  if (!has_device()) return;
  ThreadTeam threads(2);
  CudaDevice device(threads);
  for (const DType dtype : {DType::fp32, DType::bf16})
    for (const auto& [n, k] : std::initializer_list<std::pair<int64_t, int64_t>>{{30, 1100}, {200, 200}, {7, 37}}) {
      CAPTURE(n);
      CAPTURE(std::string(name_of(dtype)));
      const std::vector<double> x = numbers("x", 8 * k, dtype), w = numbers("w", n * k, dtype);
      std::vector<double> first;
      for (int64_t m = 1; m <= 8; ++m) {
        Graph g;
        const TensorId in = g.add_tensor("x", dtype, {1, m, k}, Role::input);
        const TensorId weight = g.add_tensor("w", dtype, {n, k}, Role::parameter);
        const TensorId y = g.add("linear", {}, {in, weight}, "y")[0];
        add_workspaces(g, {1, true});
        reference::Sandbox sandbox(g);
        sandbox.fill(in, {x.end() - m * k, x.end()});  // the last row is the same for all
        sandbox.fill(weight, w);
        sandbox.run(device, {}, reference::Sandbox::Place::apart);
        const std::vector<double> all = sandbox.values(y), last(all.end() - n, all.end());
        if (m == 1) first = last;
        CHECK(last == first);
      }
    }
}

TEST_CASE("cuda few rows: a row-invariant product has the same bits for any number of rows") {
  if (!has_device()) return;
  ThreadTeam threads(2);
  CudaDevice device(threads);
  // With these widths groups of 8 rows and of 4 begin with a norm, the last product with none.
  for (const auto& [n, k] : std::initializer_list<std::pair<int64_t, int64_t>>{{24, 40}, {10, 1200}, {7, 37}}) {
    CAPTURE(k);
    const std::vector<double> x = numbers("x", 19 * k, DType::fp32), w = numbers("w", n * k, DType::fp32);
    std::vector<double> first;
    for (const int64_t m : {1, 3, 8, 9, 19}) {
      Graph g;
      const TensorId in = g.add_tensor("x", DType::fp32, {1, m, k}, Role::input);
      const TensorId scale = g.add_tensor("scale", DType::fp32, {k}, Role::parameter);
      const TensorId weight = g.add_tensor("w", DType::fp32, {n, k}, Role::parameter);
      const TensorId normal = g.add("rmsnorm", {{"epsilon", 1e-5}}, {in, scale}, "normal")[0];
      const TensorId y = g.add("linear", {{"row_invariant", true}}, {normal, weight}, "y")[0];
      fuse(g, {y}, {1, true});
      CHECK(g.nodes.size() == (k == 37 ? 2 : 1));
      add_workspaces(g, {1, true});
      reference::Sandbox sandbox(g);
      sandbox.fill(in, {x.end() - m * k, x.end()});  // the last row is the same for all
      sandbox.fill(scale, numbers("scale", k, DType::fp32));
      sandbox.fill(weight, w);
      sandbox.run(device, {}, reference::Sandbox::Place::apart);
      const std::vector<double> all = sandbox.values(y), last(all.end() - n, all.end());
      if (m == 1) first = last;
      CHECK(last == first);
    }
  }
}

TEST_CASE("cuda attention: a token has the same bits however many are beside it") {
  if (!has_device()) return;
  ThreadTeam threads(2);
  CudaDevice device(threads);
  constexpr int64_t H = 3, K = 1, D = 20, kColumns = 25, kBlocks = 2 * kColumns;
  const std::vector<double> qkv = numbers("qkv", 12 * (H + 2 * K) * D, DType::fp32, 2),
                            blocks = numbers("blocks", kBlocks * K * 16 * D, DType::fp32);
  std::vector<double> first;
  for (const int64_t rows : {1, 8, 9, 12}) {  // with more than 8 rows a block goes through the parts by itself
    Graph g;
    const auto ids = [&](const char* name, Shape shape) {
      return g.add_tensor(name, DType::int32, shape, Role::input);
    };
    const TensorId in = g.add_tensor("qkv", DType::fp32, {1, rows, (H + 2 * K) * D}, Role::input);
    const TensorId keys = g.add_tensor("keys", DType::fp32, {kBlocks, K, 16, D}, Role::state);
    const TensorId values = g.add_tensor("values", DType::fp32, {kBlocks, K, 16, D}, Role::state);
    const TensorId positions = ids("positions", {1, rows}), slots = ids("slots", {1, rows}),
                   tables = ids("tables", {2, kColumns});
    const TensorId out = g.add("attention_paged", {{"heads", H}, {"kv_heads", K}, {"head_size", D}},
                               {in, keys, values, positions, slots, tables}, "out")[0];
    add_workspaces(g, {1, true});
    reference::Sandbox sandbox(g);
    sandbox.fill(in, {qkv.end() - rows * (H + 2 * K) * D, qkv.end()});
    sandbox.fill(keys, blocks), sandbox.fill(values, blocks);
    std::vector<double> at(static_cast<size_t>(rows)), of(at.size(), 0), table(kBlocks);
    for (size_t i = 0; i < at.size(); ++i) at[i] = static_cast<double>(5 * i);
    at.back() = 390, of.back() = 1;  // the last row is the same for all
    std::iota(table.begin(), table.end(), 0);
    sandbox.fill(positions, at), sandbox.fill(slots, of), sandbox.fill(tables, table);
    sandbox.run(device, {}, reference::Sandbox::Place::apart);
    const std::vector<double> all = sandbox.values(out), last(all.end() - H * D, all.end());
    if (rows == 1) first = last;
    CHECK(last == first);
  }
}

TEST_CASE("cuda sampling: the tokens of the host's sampler") {
  if (!has_device()) return;
  ThreadTeam threads(2);
  CudaDevice device(threads);
  for (const DType dtype : {DType::fp32, DType::bf16})
    for (const int64_t V : {5, 3000}) {
      CAPTURE(V);
      CAPTURE(std::string(name_of(dtype)));
      Graph g;
      const TensorId logits = g.add_tensor("logits", dtype, {1, 1, V}, Role::input);
      const TensorId options = g.add_tensor("options", DType::int32, {1, 12}, Role::input);
      const TensorId draws = g.add("sample", {}, {logits, options}, "draws")[0];
      add_workspaces(g, {1, true});
      const auto sample = [&](const std::vector<double>& values, const SamplingOptions& o, int64_t index) {
        reference::Sandbox sandbox(g);
        sandbox.fill(logits, values);
        const SampleRow row{o.temperature, o.top_p, o.min_p, o.top_k, o.seed, index};
        int32_t words[12];
        std::memcpy(words, &row, sizeof row);
        sandbox.fill(options, {words, words + 12});
        sandbox.run(device, {}, reference::Sandbox::Place::apart);
        const std::vector<double> left = sandbox.values(draws);
        Draw draw;
        for (size_t i = 0; i < 4; ++i) words[i] = static_cast<int32_t>(left[i]);
        std::memcpy(static_cast<void*>(&draw), words, sizeof draw);
        return token_of(draw);
      };
      const std::vector<double> values = numbers("logits", V, dtype, 4);
      const std::vector<float> as_float(values.begin(), values.end());
      for (const SamplingOptions& o : {SamplingOptions{.temperature = 0},
                                       {},
                                       {.temperature = 0.7, .seed = 9},
                                       {.top_k = 4},
                                       {.top_p = 0.5},
                                       {.top_k = 3, .top_p = 0.8},
                                       {.temperature = 3, .top_k = 2000, .top_p = 0.999, .seed = 4},
                                       {.min_p = 0.3},
                                       {.top_p = 0.9, .seed = 2, .min_p = 0.1},
                                       {.top_p = 0},
                                       {.temperature = 1e-300},
                                       {.temperature = 1e300, .top_k = 1}}) {
        CAPTURE(o.temperature);
        CAPTURE(o.top_k);
        CAPTURE(o.top_p);
        CAPTURE(o.min_p);
        Sampler sampler(o, V);
        for (int64_t index : {0, 1, 2, 3, 1000000007})
          CHECK(sample(values, o, index) == sampler.sample(as_float.data(), index));
      }
      std::vector<double> equal(static_cast<size_t>(V), -2.0);
      equal[1] = equal[3] = equal[4] = 1, equal[2] = -HUGE_VAL;
      const std::vector<float> equal_as_float(equal.begin(), equal.end());
      for (const SamplingOptions& o : {SamplingOptions{.temperature = 0}, {.top_k = 2}, {.top_p = 0.01}, {}}) {
        Sampler sampler(o, V);
        for (int64_t index : {0, 1, 2, 3, 4, 5})
          CHECK(sample(equal, o, index) == sampler.sample(equal_as_float.data(), index));
      }
      for (const double temperature : {0.0, 1.0}) {
        const auto error = [&](const std::vector<double>& wrong) {
          const std::vector<float> wrong_as_float(wrong.begin(), wrong.end());
          Sampler sampler({.temperature = temperature}, V);
          const std::string message = error_of([&] { sample(wrong, {.temperature = temperature}, 1); });
          CHECK(message == error_of([&] { sampler.sample(wrong_as_float.data(), 1); }));
          return message;
        };
        CHECK(has(error(std::vector<double>(static_cast<size_t>(V), -HUGE_VAL)), "all logits"));
        std::vector<double> wrong = values;
        wrong[3] = HUGE_VAL, wrong[4] = NAN;
        CHECK(has(error(wrong), "token 3 is inf"));
        wrong[3] = NAN;
        CHECK(has(error(wrong), "token 3 is nan"));
      }
    }
}

TEST_CASE("cuda generation: the tokens of the CPU, whatever the end") {
  if (!has_device()) return;
  ThreadTeam threads(2);
  CudaDevice device(threads);
  for (const std::string kind : {"gpt2", "llama", "qwen3", "experts", "phi", "gemma"}) {
    CAPTURE(kind);
    const ModelConfig config = small_config(kind);
    CpuDevice host(threads);
    Rig cpu(config, host), cuda(config, device);
    for (const size_t length : {13, 40}) {
      const bool is_long = kind != "gpt2" && kind != "llama";  // to run
      if (kSanitized && (length == 40 || is_long)) continue;
      if (is_long && kind != "qwen3" && length == 40) continue;
      std::vector<int32_t> prompt(length);
      for (size_t i = 0; i < length; ++i) prompt[i] = static_cast<int32_t>((i * 37 + length) % 61);
      // 70 new tokens fill the context of 40 and overflow it twice.
      for (const SamplingOptions& o :
           {SamplingOptions{.temperature = 0}, {.temperature = 0.9, .seed = 4}, {.top_k = 5, .top_p = 0.9}})
        if (kind == "llama" || o.temperature == 0)  // the other combinations take long on the test bed
          CHECK(cuda.generate(prompt, 70, o) == cpu.generate(prompt, 70, o));
    }
    const std::vector<int32_t> prompt = {5, 6, 7}, all = cuda.generate(prompt, 30, {});
    REQUIRE(all.size() == 30);
    CHECK(cuda.generate(prompt, 30, {}, all[10]) ==
          std::vector<int32_t>(all.begin(), std::find(all.begin(), all.end(), all[10])));
    int count = 0;
    cuda.generator->generate(prompt, 30, {}, -1, [&](int32_t) { return ++count < 4; });
    CHECK(count == 4);
    CHECK(cuda.generate(prompt, 30, {}) == all);  // what was started beyond that end has no effect
    const std::vector<float> logits = cuda.generator->logits(prompt), expected = cpu.generator->logits(prompt);
    for (size_t i = 0; i < logits.size(); ++i) CHECK(logits[i] == doctest::Approx(expected[i]).epsilon(1e-4));
    CHECK(has(error_of([&] { cuda.generate(prompt, 1, {.temperature = -1}); }), "temperature"));
    const float nan = NAN;
    cuda.arena->write(cuda.layout.offset("final_norm.weight"), &nan, sizeof nan);
    CHECK(has(error_of([&] { cuda.generate(prompt, 9, {}); }), "is nan: its weights are damaged"));
  }
  Rig narrow(small_config("llama"), device, Precision::bf16);
  CHECK(narrow.generate({1, 2, 3}, 20, {.temperature = 0}).size() == 20);
}

TEST_CASE("cuda engine: a request gets the same alone, among others, in pieces, and after preemption") {
  if (!has_device()) return;
  ThreadTeam threads(2);
  CudaDevice device(threads);
  const ModelConfig config = small_config("llama");
  const auto answers = [&](const EngineOptions& options, bool together) {
    const PersistentLayout layout = layout_of(config);
    Engine engine(config, layout, target_on(device, Precision::fp32), options);
    const Arena arena(engine.arena_bytes(), device);
    engine.bind(arena);
    fill_weights(config, layout, arena);
    constexpr size_t kRequests = 5;
    std::vector<std::vector<std::pair<int32_t, uint32_t>>> got(kRequests);
    for (size_t i = 0; i < kRequests; ++i) {
      Request request{.prompt = random_tokens(static_cast<int64_t>(3 + 6 * i), config.vocabulary, i / 2),
                      .max_tokens = 6,
                      .sampling = {.temperature = i % 2 ? 0.9 : 0, .seed = i}};
      if (i % 3 == 1) request.logprobs = 2, request.sampling.presence = 0.5;
      engine.submit(request, {.on_token = [&, i](const TokenOutput& t) {
                      got[i].emplace_back(t.id, std::isnan(t.logprob) ? 0 : bits_of(t.logprob));
                    }});
      while (!together && engine.step()) {
      }
    }
    while (engine.step()) {
    }
    CHECK(engine.statistics().blocks_used == 0);
    return got;
  };
  const auto alone = answers({.blocks = 9, .prefix_cache = false}, false);
  for (const auto& tokens : alone) CHECK(tokens.size() == 6);
  CHECK(answers({.blocks = 15}, true) == alone);
  CHECK(answers({.most_running = 4, .tokens_of_step = 11, .blocks = 4}, true) == alone);
  CHECK(answers({.most_running = 1, .tokens_of_step = 11, .drafts = 3}, true) == alone);
}

TEST_CASE(
    "cuda generation: a token takes five nodes a layer, and one that embeds, one for the head, however many rows") {
  for (const std::string kind : {"gpt2", "llama"})
    for (const int64_t rows : {1, 8, 64}) {
      const PagedGraph g = build_paged_graph(small_config(kind), rows, {3, kBlockTokens, 1}, DType::bf16, true);
      const Compiled compiled = compile(g.graph, g.results(), {1, true, Precision::bf16});
      CHECK(compiled.graph.nodes.size() == 2 * 5 + 2 + (kind == "llama" ? 1 : 0));  // one node for the angles
    }
}
