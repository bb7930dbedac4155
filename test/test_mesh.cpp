// Model parallelism: schedules of pipelines; that a model on any mesh of ranks has the gradients and losses of one rank, bit
// for bit where only samples or layers are shared out; that checkpoints go from mesh to mesh.
#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <sstream>

#include "llm/base/atomic_file.h"
#include "llm/base/json.h"
#include "llm/device/communicator_threads.h"
#include "llm/device/cpu.h"
#include "llm/model/safetensors.h"
#include "llm/train/rules.h"
#include "llm/train/trainer.h"
#include "test/helpers.h"
#include "test/reference.h"

using namespace llm;
using namespace test;

namespace {

constexpr int64_t kSequences = 4, kTokensOfSequence = 16, kMicroSteps = 4;

ModelConfig model_of(const std::string& kind) {
  ModelConfig c;
  set_architecture(c, find_value<Architecture>(kind).value_or(Architecture::modern));
  c.vocabulary = 257, c.context = kTokensOfSequence, c.layers = 4, c.heads = c.kv_heads = 4, c.channels = 32,
  c.head_size = 8;
  c.hidden = 64;
  if (kind == "llama" || kind == "grouped") c.kv_heads = 2;
  if (kind == "gpt2") c.tied_head = true;
  if (kind == "deep") c.layers = 16;
  if (kind == "phi") {  // in a context of 16, longrope's far divisors
    c.norm = Norm::layernorm, c.activation = Activation::gelu, c.qk_norm = false;
    c.bias = c.head_bias = c.parallel_block = true;
    c.rotary_size = 6, c.rope_kind = RopeKind::longrope, c.rope_original = 8, c.rope_magnitude = 1.1;
    c.rope_near = {1, 2.5, 4}, c.rope_far = {1.75, 9, 40};
  }
  if (kind == "gemma")
    c.activation = Activation::geglu, c.post_norms = true, c.embedding_scale = 5.6, c.global_every = 2, c.kv_heads = 2,
    c.rope_local_theta = 300, c.rope_magnitude = 0.9;
  if (kind == "experts") c.experts = 4, c.experts_per_token = 2, c.hidden = 32, c.kv_heads = 2;
  return c;
}

struct Layout {
  Mesh mesh;
  int zero = 1;
  PipelineKind pipeline = PipelineKind::one_forward_one_backward;
  int chunks = 1;
  ContextExchange exchange = ContextExchange::gather;
};
constexpr auto kRing = ContextExchange::ring;

struct Recipe {
  std::string model;
  OptimizerKind optimizer = OptimizerKind::adamw;
  Precision dtype = Precision::fp32;
  double dropout = 0;
  int64_t virtual_ranks = 2;
  bool documents = false;  // each is seen by itself
  int64_t micro_steps = kMicroSteps;
  int64_t sample_every = 0;
  std::string trace = "";  // the file that gets one
};

// Text for a recipe, which is the whole of a file or many documents.
std::string text_for(const Recipe& recipe, const Folder& folder) {
  if (!recipe.documents) {
    write_file_atomically(folder / "text", pattern_text(300));
    return folder / "text";
  }
  std::string lines;
  for (int i = 0; i < 300; ++i)
    lines += "{\"text\": \"" + std::string("words of a text").substr(0, static_cast<size_t>(3 + i * i % 11)) + "\"}\n";
  write_file_atomically(folder / "text.jsonl", lines);
  return folder / "text.jsonl";
}

TrainOptions options_of(const Recipe& recipe, const Layout& layout, const std::string& run) {
  TrainOptions o;
  o.data = {run + "/tokens"}, o.out = run, o.grad_accum = recipe.micro_steps, o.steps = 10, o.lr = 0.01,
  o.grad_clip = 0;
  o.batch = kSequences, o.optimizer = recipe.optimizer, o.dtype = recipe.dtype, o.dropout = recipe.dropout;
  o.virtual_ranks = recipe.virtual_ranks, o.zero = layout.zero, o.mesh = layout.mesh, o.pipeline = layout.pipeline;
  o.chunks = layout.chunks, o.eval_every = 5, o.save_every = 1, o.sample_every = recipe.sample_every, o.keep_last = 0,
  o.warmup = 0, o.guard_deviations = 0, o.document_mask = recipe.documents, o.trace = recipe.trace;
  o.context_exchange = layout.exchange;
  return o;
}

// Trains to step `steps`, from the checkpoint of step `from` where that is not 0.
void train(const std::string& run, const std::string& text, const Recipe& recipe, const Layout& layout, int64_t steps,
           int64_t from = 0, const std::function<void(Trainer&)>& look = {}, size_t memory_budget = 0) {
  {
    ThreadTeam team(1);
    open_dataset(text, run + "/tokens", team);
  }
  const auto train_rank = [&](Communicator* ranks) {
    ThreadTeam team(1);
    CpuDevice device(team);
    TrainOptions o = options_of(recipe, layout, run);
    const ModelConfig model = model_of(recipe.model);
    apply_rules(o, model, 1000);
    o.steps = steps, o.memory_budget = memory_budget;
    Trainer trainer(model, o, open_dataset(run + "/tokens", "", team), device, ranks);
    trainer.allocate(ranks);
    from ? trainer.load(run + "/checkpoints/" + std::to_string(from)) : trainer.initialise();
    trainer.run();
    if (look) look(trainer);
  };
  if (layout.mesh.ranks() == 1) return train_rank(nullptr);
  ThreadRanks(layout.mesh.ranks()).run([&](Communicator& ranks) { train_rank(&ranks); });
}

std::vector<double> logged(const std::string& run, const char* what) {
  std::vector<double> values;
  std::istringstream log(read_file(run + "/log.jsonl"));
  for (std::string line; std::getline(log, line);) values.push_back(parse_json(line, run)[what].get<double>());
  return values;
}
std::vector<double> losses_of(const std::string& run) { return logged(run, "loss"); }

std::string state_of(const std::string& run, int64_t step) {
  const std::string place = run + "/checkpoints/" + std::to_string(step) + "/";
  return read_file(place + "model.safetensors") + read_file(place + "optimizer.state");
}

// The first moments after a step, which are a tenth of the gradients, by parameter.
std::vector<std::vector<double>> moments_of(const std::string& run, const std::vector<Parameter>& table) {
  std::vector<std::vector<double>> all;
  std::vector<StateTensor> wanted = optimizer_state(table, OptimizerKind::adamw);
  std::vector<std::vector<float>> values(wanted.size());
  load_optimizer(run + "/checkpoints/1", wanted, [&](size_t i) {
    values[i].resize(static_cast<size_t>(wanted[i].shape.elements()));
    return values[i].data();
  });
  for (size_t i = 0; i < wanted.size(); i += 2) all.emplace_back(values[i].begin(), values[i].end());
  return all;
}

// A tenth of the gradients of the first step, in double.
std::vector<std::vector<double>> moments_in_double(const std::string& run, const Recipe& recipe) {
  ThreadTeam team(1);
  const ModelConfig model = model_of(recipe.model);
  TrainOptions o = options_of(recipe, {}, run);
  apply_rules(o, model, 1000);
  const std::vector<Parameter> table = parameter_table(model, parametrization_of(o));
  const Dataset data = open_dataset(run + "/tokens", "", team);
  Loader loader(data.train, kTokensOfSequence, o.seed, model.vocabulary, data.mixture);
  const TrainingGraph t = build_training_graph(model, kSequences, kTokensOfSequence, optimizer_of(o), DType::fp32,
                                               recipe_of(o, recipe.documents ? data.tokenizer->end_of_text() : -1));
  Graph g = t.graph;
  std::erase_if(g.nodes, [](const Node& node) { return node.phase > Phase::backward; });
  std::vector<std::vector<double>> moments(table.size());
  const int64_t micro_steps = recipe.virtual_ranks * kMicroSteps;
  const double weight = 1.0 / static_cast<double>(micro_steps * kSequences * kTokensOfSequence);
  for (int64_t m = 0; m < micro_steps; ++m) {
    std::vector<reference::Array> values(g.tensors.size());
    const auto fill = [&](TensorId id, auto begin, auto end) {
      values[static_cast<size_t>(id)] = {g.shape(id), {begin, end}};
    };
    std::vector<int32_t> tokens(kSequences * kTokensOfSequence), targets(tokens.size());
    loader.read(m * kSequences, kSequences, tokens.data(), targets.data());
    fill(t.tokens, tokens.begin(), tokens.end());
    fill(t.targets, targets.begin(), targets.end());
    const std::vector<double> weights(tokens.size(), weight);
    fill(t.loss_weights, weights.begin(), weights.end());
    for (const Parameter& p : table) {
      std::vector<float> start(static_cast<size_t>(p.shape.elements()));
      initialise(team, p, o.seed, start.data());
      fill(g.find(p.name), start.begin(), start.end());
    }
    reference::evaluate(g, values, {});
    for (size_t i = 0; i < table.size(); ++i) {
      const std::vector<double>& gradient = values[static_cast<size_t>(g.storage(t.gradients[i]))].values;
      moments[i].resize(gradient.size(), 0);
      for (size_t e = 0; e < gradient.size(); ++e) moments[i][e] += 0.1 * gradient[e];
    }
  }
  return moments;
}

// |a - b| / |b|, Euclidean: the error of all elements together varies less than the largest one.
double error_of_all(const std::vector<double>& a, const std::vector<double>& b) {
  double error = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) error += (a[i] - b[i]) * (a[i] - b[i]), size += b[i] * b[i];
  return std::sqrt(error / size);
}

}  // namespace

TEST_CASE("mesh: ranks have places, and groups of those that share one thing") {
  const Mesh mesh{.data = 2, .stage = 3, .context = 2, .tensor = 4, .expert = 3};
  CHECK(mesh.ranks() == 144);
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    CHECK(mesh.rank_of(mesh.place_of(rank)) == rank);
    for (const RankGroup& group : {mesh.data_group(rank), mesh.stage_group(rank), mesh.context_group(rank),
                                   mesh.tensor_group(rank), mesh.token_group(rank), mesh.expert_group(rank),
                                   mesh.same_matrices(rank), mesh.same_experts(rank), mesh.all(rank)})
      CHECK(group.in_run(group.rank) == rank);
  }
}

TEST_CASE("mesh: schedules do each pass once, in order, without standing still, and wait as long as the formulas say") {
  for (const PipelineKind kind : {PipelineKind::gpipe, PipelineKind::one_forward_one_backward,
                                  PipelineKind::interleaved, PipelineKind::zero_bubble})
    for (const int stages : {2, 4, 8})
      for (const int times : {1, 2, 5}) {
        const PipelineShape shape{kind, stages, stages * times, kind == PipelineKind::interleaved ? 3 : 1};
        CAPTURE(name_of(kind));
        CAPTURE(stages);
        CAPTURE(times);
        const PipelineSchedule schedule = make_schedule(shape);
        const PipelineTimeline timeline = simulate(shape, schedule);
        CHECK(std::abs(timeline.bubble - bubble_by_formula(shape)) < 0.02);
        for (const auto& actions : schedule) {
          std::map<std::pair<int, int>, std::vector<int>> order;  // micro-batches, by pass and chunk
          for (const PipelineAction& a : actions) order[{static_cast<int>(a.pass), a.chunk}].push_back(a.micro);
          CHECK(order.size() == static_cast<size_t>(shape.chunks * (kind == PipelineKind::zero_bubble ? 3 : 2)));
          for (const auto& [which, micros] : order) {
            REQUIRE(micros.size() == static_cast<size_t>(shape.micro_batches));
            for (int m = 0; m < shape.micro_batches; ++m) CHECK(micros[static_cast<size_t>(m)] == m);
          }
        }
        if (kind == PipelineKind::one_forward_one_backward || kind == PipelineKind::zero_bubble)
          CHECK(*std::max_element(timeline.in_flight.begin(), timeline.in_flight.end()) <= stages);
      }
  PipelineShape shape{PipelineKind::one_forward_one_backward, 2, 4};
  PipelineSchedule stuck = make_schedule(shape);
  std::swap(stuck[1][0], stuck[1][1]);  // backward before forward
  CHECK(has(error_of([&] { simulate(shape, stuck); }), "stage 0 waits for ever"));
  std::ostringstream table;
  print_schedule(table, shape);
  CHECK(has(table.str(), "stage 1"));
  CHECK(has(table.str(), "bubble 20 %"));
}

TEST_CASE("mesh: gradients and losses of all meshes are those of one rank") {
  const Layout layouts[] = {{{.stage = 2}},
                            {{.stage = 4}, 1, PipelineKind::zero_bubble},
                            {{.stage = 2}, 0, PipelineKind::interleaved, 2},
                            {{.data = 2, .stage = 2}, 2, PipelineKind::gpipe},
                            {{.tensor = 2}},
                            {{.data = 2, .tensor = 2}, 3},
                            {{.data = 2, .stage = 2, .tensor = 2}, 2, PipelineKind::zero_bubble},
                            {{.tensor = 4}},
                            {{.data = 2, .tensor = 4}, 3},
                            {{.expert = 4}},
                            {{.data = 2, .expert = 2}, 3},
                            {{.tensor = 2, .expert = 2}},
                            {{.stage = 2, .expert = 2}, 1, PipelineKind::zero_bubble},
                            {{.context = 2, .expert = 2}},
                            {{.context = 4}, 0},
                            {{.data = 2, .context = 2, .tensor = 2}, 3},
                            {{.stage = 2, .context = 4}, 1, PipelineKind::zero_bubble},
                            {.mesh = {.context = 2}, .zero = 0, .exchange = kRing},
                            {.mesh = {.context = 8}, .exchange = kRing},
                            {.mesh = {.context = 2, .expert = 2}, .exchange = kRing},
                            {.mesh = {.data = 2, .context = 2, .tensor = 2}, .zero = 3, .exchange = kRing},
                            {{.stage = 2, .context = 4}, 1, PipelineKind::zero_bubble, 1, kRing}};
  for (const std::string kind : {"gpt2", "llama", "qwen3", "experts", "phi", "gemma"}) {
    const Folder folder;
    const Recipe recipe{.model = kind, .documents = kind == "llama"};
    const std::string text = text_for(recipe, folder);
    train(folder / "one", text, recipe, {}, 10);
    const std::vector<Parameter> table = parameter_table(model_of(kind));
    const auto one = moments_of(folder / "one", table), exact = moments_in_double(folder / "one", recipe);
    const std::vector<double> losses = losses_of(folder / "one");
    double plain = 0;  // error of fp32 on one rank, the average over parameters
    for (size_t i = 0; i < table.size(); ++i)
      plain += error_of_all(one[i], exact[i]) / static_cast<double>(table.size());
    CHECK(plain < 1e-5);
    for (const Layout& layout : layouts) {
      if ((kSanitized && layout.mesh.ranks() != 4) || (layout.mesh.expert > 1 && kind != "experts")) continue;
      if ((kind == "phi" || kind == "gemma") && layout.mesh.ranks() != 4) continue;
      CAPTURE(kind);
      CAPTURE(layout.mesh.text());
      CAPTURE(name_of(layout.pipeline));
      CAPTURE(name_of(layout.exchange));
      const std::string run = folder / concat("mesh", &layout - layouts);
      train(run, text, recipe, layout, 10);
      if (layout.mesh.sharing() == 1) {
        CHECK(losses_of(run) == losses);
        CHECK(state_of(run, 10) == state_of(folder / "one", 10));
        continue;
      }
      const auto cut = moments_of(run, table);
      for (size_t i = 0; i < table.size(); ++i) {
        CAPTURE(table[i].name);
        const double own = error_of_all(one[i], exact[i]);
        CHECK(error_of_all(cut[i], exact[i]) <= 2 * std::max(plain, own));
      }
      for (const auto& [what, tolerance] : {std::pair{"loss", 1e-4}, {"grad_norm", 1e-3}}) {
        const std::vector<double> ours = logged(run, what), theirs = logged(folder / "one", what);
        REQUIRE(ours.size() == theirs.size());
        for (size_t i = 0; i < ours.size(); ++i) CHECK(std::abs(ours[i] - theirs[i]) < tolerance * theirs[i]);
      }
    }
  }
}

TEST_CASE("mesh: in bf16 a ring's gradients are as exact as those by gathered keys") {
  for (const std::string kind : {"gpt2", "llama"}) {
    const Folder folder;
    const Recipe recipe{.model = kind, .dtype = Precision::bf16, .documents = kind == "llama"};
    const std::string text = text_for(recipe, folder);
    for (const int ranks : {2, 8}) {
      CAPTURE(kind);
      CAPTURE(ranks);
      const auto error_of = [&](ContextExchange exchange) {
        const std::string run = folder / concat(ranks, name_of(exchange));
        train(run, text, recipe, {.mesh = {.context = ranks}, .exchange = exchange}, 1);
        const std::vector<Parameter> table = parameter_table(model_of(kind));
        const auto found = moments_of(run, table), exact = moments_in_double(run, recipe);
        double error = 0;
        for (size_t i = 0; i < table.size(); ++i) error += error_of_all(found[i], exact[i]);
        return error;
      };
      CHECK(error_of(kRing) < 1.2 * error_of(ContextExchange::gather));
    }
  }
}

TEST_CASE("mesh: what a ring computes, sends and holds") {
  ModelConfig model = model_of("llama");
  model.context = 256;
  constexpr int64_t kBatch = 2;
  const int64_t layers = model.layers, all_keys = kBatch * model.context * 2 * model.kv_heads * model.head_size * 4;
  for (const int ranks : {2, 4, 8}) {
    CAPTURE(ranks);
    const int64_t own_keys = all_keys / ranks;
    double sent = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      const auto compiled = [&](ContextExchange exchange) {
        const DataParallel parallel{.mesh = {.context = ranks}, .run_rank = rank, .context_exchange = exchange};
        TrainingGraph t =
            build_training_graph(model, kBatch, model.context, {}, DType::fp32, {.end_of_text = 1}, parallel);
        return compile(std::move(t.graph), {t.loss, t.gradient_norm}, {});
      };
      const auto attention_flops = [](const Compiled& c) {
        double flops = 0;
        for (const Node& node : c.graph.nodes)
          if (std::string_view(node.op->name).starts_with("attention")) flops += node.op->cost(c.graph, node).flops;
        return flops;
      };
      const Compiled gathered = compiled(ContextExchange::gather), ring = compiled(kRing);
      CHECK(attention_flops(ring) == doctest::Approx(attention_flops(gathered)).epsilon(1e-12));
      CHECK(ring.plan.bytes < gathered.plan.bytes);
      // A rank holds, beside its own, the keys and values that it uses and those that arrive; and as much gradient.
      std::vector<int64_t> arriving(ring.graph.nodes.size(), 0);
      for (const Node& node : ring.graph.nodes) {
        if (node.op->name != std::string_view("ring_shift_start")) continue;
        sent += node.op->cost(ring.graph, node).bytes_sent;
        const auto id = static_cast<size_t>(node.outputs[0]);
        const auto [first, last] = ring.plan.lifetimes[id];
        for (int n = first; n <= last; ++n)
          arriving[static_cast<size_t>(n)] += static_cast<int64_t>(ring.graph.tensors[id].bytes());
      }
      CHECK(*std::max_element(arriving.begin(), arriving.end()) <= (ranks == 2 ? 2 : 4) * own_keys);
    }
    // Keys and values go round twice, three quarters of them on the average; their gradient once, but for a chunk.
    const double rounds = 2 * 0.75 * ranks + ranks - 0.5;
    CHECK(sent == doctest::Approx(static_cast<double>(layers * own_keys * (ranks - 1)) * rounds).epsilon(1e-12));
  }
  // What is sent is what the cost column says.
  const Folder folder;
  write_file_atomically(folder / "text", pattern_text(300));
  for (const int ranks : {2, 4}) {
    std::atomic<uint64_t> sent{0}, predicted{0};
    Layout layout{.mesh = {.context = ranks}, .exchange = kRing};
    train(folder / concat("ring", ranks), folder / "text", {.model = "llama", .virtual_ranks = 1}, layout, 1, 0,
          [&](Trainer& trainer) {
            double micro_step = 0, step = 0;
            const Graph& g = trainer.program().graph();
            for (const Node& node : g.nodes)
              (kMicroStep.contain(node.phase) ? micro_step : step) += node.op->cost(g, node).bytes_sent;
            predicted += static_cast<uint64_t>(kMicroSteps * micro_step + step);
            sent += trainer.step_bytes_sent();
          });
    CAPTURE(ranks);
    CHECK(sent == predicted);
  }
}

TEST_CASE("mesh: Muon, bf16, dropout; how many ranks share samples or layers does not matter where matrices are cut") {
  for (const Precision dtype : {Precision::fp32, Precision::bf16}) {
    const Folder folder;
    write_file_atomically(folder / "text", pattern_text(300));
    const Recipe recipe{.model = "grouped", .optimizer = OptimizerKind::muon, .dtype = dtype, .dropout = 0.1};
    train(folder / "one", folder / "text", recipe, {}, 3);
    // Two ranks have each key-value head.
    train(folder / "shared", folder / "text", recipe, {{.tensor = 4}, 0}, 3);
    for (const int zero : {1, 3}) {
      train(folder / concat("shared", zero), folder / "text", recipe, {{.data = 2, .tensor = 4}, zero}, 3);
      CHECK(state_of(folder / concat("shared", zero), 3) == state_of(folder / "shared", 3));
    }
    train(folder / "cut", folder / "text", recipe, {{.tensor = 2}, 0}, 3);
    train(folder / "chunks", folder / "text", recipe, {{.context = 2}, 0}, 3);
    train(folder / "chunks of more", folder / "text", recipe, {{.data = 2, .context = 2}, 2}, 3);
    CHECK(state_of(folder / "chunks of more", 3) == state_of(folder / "chunks", 3));
    train(folder / "ring", folder / "text", recipe, {.mesh = {.context = 4}, .zero = 0, .exchange = kRing}, 3);
    train(folder / "rings", folder / "text", recipe, {.mesh = {.data = 2, .context = 4}, .zero = 3, .exchange = kRing},
          3);
    CHECK(state_of(folder / "rings", 3) == state_of(folder / "ring", 3));
    train(folder / "all", folder / "text", recipe, {{.context = 2, .tensor = 4}}, 3);
    const auto a = losses_of(folder / "one");
    for (const char* run : {"cut", "shared", "chunks", "ring", "all"})
      for (size_t i = 0; i < a.size(); ++i)
        CHECK(std::abs(a[i] - losses_of(folder / run)[i]) < (dtype == Precision::fp32 ? 1e-4 : 1e-2) * a[i]);
    const std::string state = state_of(folder / "cut", 3);
    for (const int zero : {0, 1, 2, 3}) {
      CAPTURE(zero);
      const std::string run = folder / concat("zero", zero);
      train(run, folder / "text", recipe, {{.data = 2, .tensor = 2}, zero}, 3);
      CHECK(state_of(run, 3) == state);
    }
    train(folder / "pipe", folder / "text", recipe, {{.stage = 2, .tensor = 2}}, 3);
    CHECK(state_of(folder / "pipe", 3) == state);
    train(folder / "chunks in a pipe", folder / "text", recipe, {{.stage = 2, .context = 2}}, 3);
    CHECK(state_of(folder / "chunks in a pipe", 3) == state_of(folder / "chunks", 3));
  }
}

TEST_CASE(
    "mesh: where ranks share experts, how many share samples or layers does not matter; checkpoints go on anywhere") {
  for (const Precision dtype : {Precision::fp32, Precision::bf16}) {
    const Folder folder;
    write_file_atomically(folder / "text", pattern_text(300));
    const Recipe recipe{.model = "experts", .optimizer = OptimizerKind::muon, .dtype = dtype, .dropout = 0.1};
    train(folder / "one", folder / "text", recipe, {}, 3);
    train(folder / "cut", folder / "text", recipe, {{.expert = 2}, 0}, 3);
    const auto a = losses_of(folder / "one"), b = losses_of(folder / "cut");
    for (size_t i = 0; i < a.size(); ++i)
      CHECK(std::abs(a[i] - b[i]) < (dtype == Precision::fp32 ? 1e-4 : 1e-2) * a[i]);
    const std::string state = state_of(folder / "cut", 3);
    for (const int zero : {0, 1, 2, 3}) {
      CAPTURE(zero);
      const std::string run = folder / concat("zero", zero);
      train(run, folder / "text", recipe, {{.data = 2, .expert = 2}, zero}, 3);
      CHECK(state_of(run, 3) == state);
    }
    train(folder / "pipe", folder / "text", recipe, {{.stage = 2, .expert = 2}}, 3);
    CHECK(state_of(folder / "pipe", 3) == state);
    if (dtype == Precision::bf16) continue;
    train(folder / "cut", folder / "text", recipe, {{.expert = 4}}, 3, 1);
    train(folder / "cut", folder / "text", recipe, {}, 3, 2);
    for (size_t i = 0; i < a.size(); ++i) CHECK(std::abs(losses_of(folder / "cut")[i] - a[i]) < 1e-4 * a[i]);
  }
}

// What a trace says that the stages of a pipeline did, in order of time.
PipelineSchedule traced_passes(const std::string& path, int stages) {
  std::vector<std::vector<std::pair<double, PipelineAction>>> passes(static_cast<size_t>(stages));
  const Json file = read_json(path);
  for (const Json& event : file["traceEvents"]) {
    if (!event.contains("cat") || event.at("cat").string() != "pass") continue;
    const std::string name = event.at("name").string();
    const auto pass = find_value<PipelinePass>(name.substr(0, name.find(' ')));
    REQUIRE(pass);
    passes.at(event.at("pid").get<size_t>())
        .emplace_back(event.at("ts").get<double>(), PipelineAction{*pass, event.at("args").at("chunk").get<int>(),
                                                                   event.at("args").at("micro_batch").get<int>()});
  }
  PipelineSchedule schedule;
  for (auto& of_stage : passes) {
    std::sort(of_stage.begin(), of_stage.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    auto& actions = schedule.emplace_back();
    for (const auto& [time, action] : of_stage) actions.push_back(action);
  }
  return schedule;
}

TEST_CASE("mesh: what a pipeline does, by its trace, takes as long as the formulas say where passes take equal times") {
  const Folder folder;
  for (const PipelineKind kind : {PipelineKind::gpipe, PipelineKind::one_forward_one_backward,
                                  PipelineKind::interleaved, PipelineKind::zero_bubble})
    for (const int stages : {2, 4, 8}) {
      if (kSanitized && stages != 4) continue;
      CAPTURE(name_of(kind));
      CAPTURE(stages);
      const std::string run = folder / concat(name_of(kind), stages);
      const PipelineShape shape{kind, stages, 2 * stages, kind == PipelineKind::interleaved ? 2 : 1};
      const Recipe recipe{
          .model = "deep", .virtual_ranks = 1, .micro_steps = shape.micro_batches, .trace = run + ".json"};
      train(run, text_for(recipe, folder), recipe, {{.stage = stages}, 0, kind, shape.chunks}, 2);
      const PipelineSchedule done = traced_passes(run + ".json", stages);
      for (const auto& actions : done)
        REQUIRE(actions.size() ==
                static_cast<size_t>(shape.micro_batches * shape.chunks * (kind == PipelineKind::zero_bubble ? 3 : 2)));
      CHECK(std::abs(simulate(shape, done).bubble - bubble_by_formula(shape)) < 0.02);
    }
}

TEST_CASE("mesh: a pipeline of one micro-step, with samples on the way, has the bits of one rank") {
  for (const std::string kind : {"modern", "gpt2"}) {
    const Folder folder;
    const Recipe recipe{.model = kind, .optimizer = OptimizerKind::muon, .micro_steps = 1, .sample_every = 1};
    const std::string text = text_for(recipe, folder);
    // A tied head's gradient on one rank is one sum where there is one micro-step, and that of two sums otherwise.
    train(folder / "one", text, recipe, kind == "gpt2" ? Layout{{.stage = 4}, 0} : Layout{}, 2);
    for (const Layout& layout : {Layout{{.stage = 2}, 0},
                                 {{.data = 2, .stage = 2}, 1},
                                 {{.data = 2, .stage = 2}, 2},
                                 {{.data = 2, .stage = 2}, 2, PipelineKind::zero_bubble}}) {
      CAPTURE(kind);
      CAPTURE(layout.mesh.text());
      CAPTURE(layout.zero);
      const std::string run = folder / concat(layout.mesh.text(), layout.zero, name_of(layout.pipeline));
      train(run, text, recipe, layout, 2);
      CHECK(state_of(run, 2) == state_of(folder / "one", 2));
    }
  }
}

TEST_CASE("mesh: a checkpoint goes on on any mesh") {
  const Folder folder;
  write_file_atomically(folder / "text", pattern_text(300));
  const Recipe recipe{.model = "gpt2", .optimizer = OptimizerKind::muon};
  train(folder / "alone", folder / "text", recipe, {}, 4);
  const std::string run = folder / "moving";
  train(run, folder / "text", recipe, {{.data = 2, .stage = 2}, 2}, 4);
  train(run, folder / "text", recipe, {{.stage = 4}, 1, PipelineKind::zero_bubble}, 4, 1);
  train(run, folder / "text", recipe, {}, 4, 2);
  train(run, folder / "text", recipe, {{.data = 2}, 3}, 4, 3);
  CHECK(state_of(run, 4) == state_of(folder / "alone", 4));
  // Through slices of matrices and back.
  train(folder / "cut", folder / "text", recipe, {{.tensor = 4}}, 4);
  train(folder / "cut", folder / "text", recipe, {{.stage = 2, .context = 2, .tensor = 2}}, 4, 2);
  train(folder / "cut", folder / "text", recipe, {}, 4, 3);
  const auto a = losses_of(folder / "alone"), b = losses_of(folder / "cut");
  for (size_t i = 0; i < a.size(); ++i) CHECK(std::abs(a[i] - b[i]) < 1e-4 * a[i]);
}

TEST_CASE("mesh: what a rank holds gets less, and a budget that one rank cannot keep several can") {
  const Folder folder;
  write_file_atomically(folder / "text", pattern_text(300));
  const Recipe recipe{.model = "modern"};
  const auto bytes_on = [&](const Layout& layout) {
    size_t most = 0;
    std::mutex lock;
    train(folder / layout.mesh.text(), folder / "text", recipe, layout, 1, 0, [&](Trainer& trainer) {
      const std::lock_guard guard(lock);
      most = std::max(most, trainer.arena_bytes());
    });
    return most;
  };
  const size_t one = bytes_on({});
  CHECK(bytes_on({{.tensor = 2}}) < one);
  CHECK(bytes_on({{.tensor = 4}}) < bytes_on({{.tensor = 2}}));
  CHECK(bytes_on({{.context = 2}}) < one);
  const Layout all{{.data = 2, .stage = 2, .tensor = 2}, 2};
  const size_t eight = bytes_on(all);
  CHECK(eight < one);
  const auto within = [&](const Layout& layout, size_t budget) {
    return error_of([&] { train(folder / "budget", folder / "text", recipe, layout, 2, 0, {}, budget); });
  };
  CHECK(has(within({}, eight), "is too small: however much is recomputed"));
  CHECK(within(all, eight) == "no error");
  CHECK(has(within(all, eight / 4), "is too small for stage"));
  // Keys and values are gathered again, or go round again, where what they give cannot be kept, which changes no bit.
  for (const ContextExchange exchange : {ContextExchange::gather, kRing}) {
    const Layout shared{.mesh = {.context = 2}, .exchange = exchange};
    const size_t bytes = bytes_on(shared);
    for (const size_t less : {size_t{0}, bytes / 12})
      train(
          folder / concat(name_of(exchange), less > 0), folder / "text", recipe, shared, 2, 0,
          [&](Trainer& trainer) { CHECK((less == 0 || trainer.arena_bytes() <= bytes - less)); },
          less ? bytes - less : 0);
    CHECK(state_of(folder / concat(name_of(exchange), 1), 2) == state_of(folder / concat(name_of(exchange), 0), 2));
  }
}

TEST_CASE("mesh: what does not divide the model says what would do") {
  ModelConfig model = model_of("llama");
  const auto refused = [&](const Mesh& mesh, int64_t batch) {
    return error_of([&] { check_mesh(mesh, model, batch, kTokensOfSequence); });
  };
  CHECK(refused({.tensor = 3}, 6) == "3 tensor-parallel ranks do not divide 4 heads; 2 would do");
  CHECK(refused({.tensor = 4}, 4) == "no error");
  model.heads = 12, model.kv_heads = 4, model.hidden = 96;
  CHECK(has(refused({.tensor = 6}, 6), "6 tensor-parallel ranks and 4 key-value heads: one must be a multiple"));
  model = model_of("llama");
  CHECK(has(refused({.tensor = 2}, 3), "a batch of 4 would do"));
  CHECK(refused({.tensor = 2}, 1) == "no error");
  CHECK(
      refused({.context = 3}, 1) ==
      "3 context-parallel ranks have two equal chunks each of a sequence, and 6 do not divide 16 tokens; 2 ranks would "
      "do, or --context 12");
  CHECK(refused({.context = 8, .tensor = 2}, 1) == "no error");
  CHECK(has(refused({.context = 8, .tensor = 2}, 3), "a batch of 4 would do"));
  CHECK(refused({.expert = 2}, 2) == "a model without experts has nothing for 2 expert-parallel ranks");
  model = model_of("experts");
  CHECK(refused({.expert = 3}, 3) == "3 expert-parallel ranks do not divide 4 experts; 2 would do");
  CHECK(has(refused({.expert = 4}, 6), "a batch of 8 would do"));
  CHECK(has(refused({.tensor = 2, .expert = 2}, 6), "a batch of 8 would do"));
  model = model_of("gpt2");
  CHECK(has(refused({.tensor = 2}, 1), "a batch of 2 would do"));
  CHECK(has(error_of([&] { cut_layers(model, 16, 5); }),
            "5 parts of a pipeline need as many layers, and the model has 4"));
  CHECK(cut_layers(model, 16, 4) == std::vector<int>{0, 1, 2, 3, 4});
  model.layers = 12, model.vocabulary = 50257, model.channels = 768, model.hidden = 3072;
  const std::vector<int> cuts = cut_layers(model, 1024, 4);
  CHECK(cuts[4] - cuts[3] < cuts[1] - cuts[0]);  // the last part has the head as well
}
