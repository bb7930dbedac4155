// The switches of a recipe in whole models: initial values, caps and extra terms of the loss, masks, dropout, and what
// happens to outlier steps.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "llm/base/atomic_file.h"
#include "llm/base/random.h"
#include "llm/device/cpu.h"
#include "llm/model/huggingface.h"
#include "llm/ops/attention_cpu.h"
#include "llm/ops/step_guard.h"
#include "llm/train/rules.h"
#include "llm/train/trainer.h"
#include "test/helpers.h"
#include "test/reference.h"

using namespace llm;
using namespace test;

namespace {

std::string write_text(const Folder& folder) {
  const std::string path = folder / "text.txt";
  write_file_atomically(path, pattern_text(300));
  return path;
}

// A run of o.steps steps with a checkpoint after each o.save_every; resume_from > 0 continues from the checkpoint of
// that step.
Trainer::Outcome train(const std::string& run, const std::string& text, const ModelConfig& model, TrainOptions o,
                       int threads = 2, int64_t resume_from = 0, TrainingObserver&& observer = TrainingObserver()) {
  ThreadTeam team(threads);
  CpuDevice device(team);
  o.data = {text}, o.out = run, o.weight_decay = 0.1;
  o.batch = 4, o.eval_every = 1000, o.sample_every = 0, o.keep_last = 0;
  if (o.lr == 0) o.lr = 0.01;
  Dataset dataset = open_dataset(text, run + "/tokens", team);
  apply_rules(o, model, 100);
  Trainer trainer(model, o, std::move(dataset), device);
  trainer.allocate();
  if (resume_from > 0)
    trainer.load(run + "/checkpoints/" + std::to_string(resume_from));
  else
    trainer.initialise();
  return trainer.run(0, observer);
}

// A model's graph, ready to run, with the initial values of a training run.
struct Running {
  ThreadTeam team;
  CpuDevice device{team};
  PersistentLayout layout;
  std::unique_ptr<Program> program;
  std::unique_ptr<Arena> arena;

  Running(const Graph& g, const std::vector<TensorId>& results, const ModelConfig& config,
          const CompileOptions& options = {}, RecomputeChoice recomputed = {}, int threads = 2)
      : team(threads) {
    layout.add(g);
    Graph graph = g;
    recompute(graph, recomputed);
    program = std::make_unique<Program>(compile(graph, results, {.threads = threads}, options), layout);
    arena = std::make_unique<Arena>(program->arena_bytes(), device);
    program->bind(*arena);
    for (const Parameter& p : parameter_table(config)) initialise(team, p, 7, program->data(g.find(p.name)));
  }
  std::vector<double> values(TensorId id) const {
    const float* data = program->data(id);
    return {data, data + program->graph().shape(id).elements()};
  }
  void put(TensorId id, const std::vector<int32_t>& ids) { program->write(id, ids.data()); }
};

std::vector<int32_t> some_tokens(int64_t count, int64_t vocabulary, uint64_t seed) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i)
    ids.push_back(
        static_cast<int32_t>(Random(seed, 1).bits(static_cast<uint64_t>(i)) % static_cast<uint64_t>(vocabulary)));
  return ids;
}

}  // namespace

TEST_CASE("recipes: projections into the residual stream can begin at zero") {
  const Folder folder;
  const std::string text = write_text(folder);
  for (const bool zero : {false, true}) {
    TrainOptions o;
    o.steps = 1, o.save_every = 1, o.zero_projections = zero;
    o.optimizer = OptimizerKind::adamw, o.parametrization = RateScaling::standard;
    const std::string run = folder / (zero ? "zero" : "drawn");
    train(run, text, small_model(), o);
    const auto table = parameter_table(small_model());
    std::vector<std::vector<float>> values(table.size());
    load_parameters(run + "/checkpoints/1", table, [&](size_t i) {
      values[i].resize(static_cast<size_t>(table[i].shape.elements()));
      return values[i].data();
    });
    int residual = 0;
    for (size_t i = 0; i < table.size(); ++i) {
      CAPTURE(table[i].name);
      residual += table[i].residual;
      CHECK(table[i].residual ==
            (table[i].name.ends_with("attention_out.weight") || table[i].name.ends_with("mlp_out.weight")));
      double sum = 0;
      for (float v : values[i]) sum += v * v;
      // One step of AdamW moves each element by at most the learning rate.
      const double rms = std::sqrt(sum / static_cast<double>(values[i].size()));
      if (table[i].residual) CHECK((rms <= 0.0101) == zero);
    }
    CHECK(residual == 2 * small_model().layers);
  }
}

TEST_CASE("recipes: capped logits and the z-loss in a whole model") {
  constexpr int64_t kBatch = 2, kTokens = 8;
  ModelConfig config = reference::small_config("modern");
  config.logit_softcap = 0.5;  // the logits of initial weights are about 1
  const TrainingGraph t = build_training_graph(config, kBatch, kTokens, {}, DType::fp32, {.z_loss = 0.1});
  const std::vector<int32_t> tokens = some_tokens(kBatch * kTokens, config.vocabulary, 1);
  std::vector<int32_t> targets = some_tokens(kBatch * kTokens, config.vocabulary, 2);
  targets[3] = -1;
  const auto run = [&](bool fuse) {
    CompileOptions options;
    options.fuse = fuse;
    auto running = std::make_unique<Running>(t.graph, t.results(), config, options);
    running->put(t.tokens, tokens), running->put(t.targets, targets);
    std::fill_n(running->program->data(t.loss_weights), kBatch * kTokens, 1.0f / (kBatch * kTokens));
    running->program->run(kWholeStep);
    return running;
  };
  const auto fused = run(true), plain = run(false);

  Graph forward = t.graph;
  std::erase_if(forward.nodes, [](const Node& n) { return n.phase != Phase::forward; });
  std::vector<reference::Array> exact(forward.tensors.size());
  exact[static_cast<size_t>(t.tokens)] = {{kBatch, kTokens}, {tokens.begin(), tokens.end()}};
  exact[static_cast<size_t>(t.targets)] = {{kBatch, kTokens}, {targets.begin(), targets.end()}};
  exact[static_cast<size_t>(t.loss_weights)] = {{kBatch, kTokens},
                                                std::vector<double>(kBatch * kTokens, 1.0 / (kBatch * kTokens))};
  const Running initial(t.graph, t.results(), config);
  for (const Parameter& p : parameter_table(config)) {
    const TensorId id = t.graph.find(p.name);
    exact[static_cast<size_t>(id)] = {p.shape, initial.values(id)};
  }
  reference::evaluate(forward, exact, {});
  const std::vector<double>& losses = exact[static_cast<size_t>(t.losses)].values;
  CHECK(reference::relative_error(fused->values(t.losses), losses) < 1e-6);
  CHECK(reference::relative_error(plain->values(t.losses), losses) < 1e-6);
  CHECK(reference::relative_error(fused->values(t.gradient_norm), plain->values(t.gradient_norm)) < 1e-6);

  // Evaluation has the same cap and no z-loss.
  const EvaluationGraph e = build_evaluation_graph(config, kBatch, kTokens);
  Running evaluation(e.graph, e.results(), config);
  evaluation.put(e.tokens, tokens), evaluation.put(e.targets, targets);
  evaluation.program->run(Phase::forward);
  // Each row of the batch is a sequence of its own, in blocks of its own.
  constexpr int64_t kRows = kBatch * kTokens, kBlock = 16;
  const PagedGraph n = build_paged_graph(config, kRows, {kBatch, kBlock, kBatch}, DType::fp32, true);
  Running generation(n.graph, n.results(), config);
  std::vector<int32_t> rows(3 * kRows);
  for (size_t i = 0; i < kRows; ++i)
    rows[i] = tokens[i], rows[kRows + i] = static_cast<int32_t>(i % kTokens),
    rows[2 * kRows + i] = static_cast<int32_t>(i / kTokens);
  generation.put(n.rows, rows);
  std::vector<int32_t> tables(static_cast<size_t>(n.graph.shape(n.graph.find("block_tables")).elements()));
  for (size_t i = 0; i < kBatch; ++i) tables[i * tables.size() / kBatch] = static_cast<int32_t>(i);
  generation.put(n.graph.find("block_tables"), tables);
  generation.program->run(Phase::forward);
  const std::vector<double> logits = generation.values(n.logits), evaluated = evaluation.values(e.losses);
  for (size_t b = 0; b < kBatch; ++b) {
    const auto row = logits.begin() + static_cast<std::ptrdiff_t>((b + 1) * kTokens - 1) * config.vocabulary;
    double sum = 0;
    for (auto v = row; v < row + config.vocabulary; ++v) {
      CHECK(std::abs(*v) <= config.logit_softcap);
      sum += std::exp(*v);
    }
    const size_t last = (b + 1) * kTokens - 1;
    const double loss = std::log(sum) - row[targets[last]];
    CHECK(evaluated[last] == doctest::Approx(loss).epsilon(1e-6));
    CHECK(losses[last] == doctest::Approx(loss + 0.1 * std::pow(std::log(sum), 2)).epsilon(1e-6));
  }

  // transformers has no such model: the config is of the project's own type and can be read back.
  CHECK(model_type_of(config) == "train_gpt");
  CHECK(parse_config(config_json(config, {}), "here") == config);
}

TEST_CASE("recipes: a step that sticks out is left out, named, and left out again when resumed") {
  const Folder folder;
  const std::string text = folder / "text.txt";
  {
    std::ofstream file(text);
    for (int i = 0; i < 300; ++i) {
      file << "line " << i * i % 97 << " of the text\n";
      if (i == 150)  // characters that come nowhere else
        for (uint64_t k = 0; k < 64; ++k) file << static_cast<char>('A' + Random(1, 2).bits(k) % 26);
    }
  }
  ModelConfig model = small_model();
  TrainOptions o;
  // The rate is so low that losses are alike whatever the width of the CPU's vectors; at a higher rate they would be
  // noise.
  o.steps = 300, o.save_every = 50, o.schedule = ScheduleKind::constant, o.warmup = 10, o.lr = 0.003;
  struct Line {
    double loss;
    bool skipped;
  };
  const auto log_of = [](const std::string& run) {
    std::vector<Line> lines;
    std::ifstream file(run + "/log.jsonl");
    for (std::string line; std::getline(file, line);) {
      const auto j = nlohmann::json::parse(line);
      lines.push_back({j.at("loss"), j.contains("skipped")});
    }
    return lines;
  };
  struct Skips : TrainingObserver {
    std::vector<SkippedStep>& list;
    explicit Skips(std::vector<SkippedStep>& told) : list(told) {}
    void on_skip(const SkippedStep& step) override { list.push_back(step); }
  };
  std::vector<SkippedStep> skips;
  train(folder / "whole", text, model, o, 2, 0, Skips(skips));
  const std::vector<Line> whole = log_of(folder / "whole");
  REQUIRE(whole.size() == 300);
  const auto count = std::count_if(whole.begin(), whole.end(), [](const Line& l) { return l.skipped; });
  CHECK(count >= 1);
  CHECK(count <= 12);  // in each of three and a half epochs the odd text comes up to five times
  const auto step =
      std::find_if(whole.begin(), whole.end(), [](const Line& l) { return l.skipped; }) - whole.begin() + 1;
  REQUIRE(step <= 300);
  CHECK(step > 50);
  REQUIRE(static_cast<std::ptrdiff_t>(skips.size()) == count);
  const SkippedStep& first = skips.front();
  CHECK(first.step == step);
  CHECK(first.loss == whole[static_cast<size_t>(step) - 1].loss);
  CHECK(first.finite);
  CHECK(has(first.batch, concat("samples ", 4 * (step - 1), " to ", 4 * step - 1, ", the first at token ")));
  CHECK(has(first.batch, ": \""));  // the text of the batch
  CHECK(has(first.batch, "\\nline"));

  // The same again from a checkpoint before it; its weights are those of the step before.
  const int64_t before = (step - 1) / 50 * 50;
  std::filesystem::create_directories(folder / "again/checkpoints");
  std::filesystem::copy(folder / ("whole/checkpoints/" + std::to_string(before)),
                        folder / ("again/checkpoints/" + std::to_string(before)));
  o.steps = step, o.save_every = 1;
  train(folder / "again", text, model, o, 3, before);
  const auto weights = [&](const std::string& run, int64_t at) {
    return read_file(folder / (run + "/checkpoints/" + std::to_string(at) + "/model.safetensors"));
  };
  CHECK(log_of(folder / "again").back().skipped);
  CHECK(weights("again", step) == weights("again", step - 1));
  CHECK(weights("again", step - 1) != weights("again", step - 2));
  o.steps = 300, o.save_every = 50;
  train(folder / "again", text, model, o, 1, step);
  CHECK(weights("again", 300) == weights("whole", 300));

  SUBCASE("but not without the guard") {
    o.guard_deviations = 0;
    train(folder / "without", text, model, o);
    for (const Line& line : log_of(folder / "without")) CHECK(!line.skipped);
  }
}

TEST_CASE("recipes: the guard accepts what stays, and noise") {
  const GuardRule rule{6, 50};
  float statistics[kGuardStatistics] = {};
  const auto look = [&](double norm, double loss) { return rule.look(norm, loss, statistics); };
  // Losses that fall fast at the start, then noise, with norms that vary by a factor of two, too.
  for (int i = 0; i < 400; ++i)
    CHECK(!look(std::exp2(std::sin(i * 1.7)), 3 + 3 * std::exp(-i / 20.0) + 0.1 * std::sin(i * 2.3)));
  CHECK(!look(3.5, 3.3));
  CHECK(look(1, 6));
  CHECK(look(1e3, 3));
  CHECK(look(1e3, 6));
  CHECK(!look(1, 3));
  int skipped = 0;
  while (look(40, 5) && skipped < 100) ++skipped;
  CHECK(skipped > 0);
  CHECK(skipped < 15);
}

TEST_CASE("recipes: documents packed behind one another are as if apart") {
  constexpr int64_t kFirst = 7, kSecond = 9, kBoth = kFirst + kSecond;
  for (const char* kind : {"modern", "relu2"}) {
    const ModelConfig config = reference::small_config(kind);
    std::vector<int32_t> tokens = some_tokens(kBoth, config.vocabulary - 1, 1),
                         targets = some_tokens(kBoth, config.vocabulary, 2);
    for (int32_t& id : tokens) ++id;
    tokens[0] = tokens[kFirst] = 0;  // end of text, which begins a document
    struct Result {
      std::vector<double> losses;
      std::map<std::string, std::vector<double>> gradients;
    };
    const auto run = [&](int64_t begin, int64_t end, int32_t end_of_text) {
      const TrainingGraph t =
          build_training_graph(config, 1, end - begin, {}, DType::fp32, {.end_of_text = end_of_text});
      Running running(t.graph, t.results(), config);
      running.put(t.tokens, {tokens.begin() + begin, tokens.begin() + end});
      running.put(t.targets, {targets.begin() + begin, targets.begin() + end});
      std::fill_n(running.program->data(t.loss_weights), end - begin, 1.0f / kBoth);
      running.program->run(kMicroStep);
      Result r{running.values(t.losses), {}};
      for (size_t i = 0; i < t.graph.tensors.size(); ++i)
        if (const Tensor& tensor = t.graph.tensors[i]; tensor.role == Role::accumulator && tensor.alias == kNone)
          r.gradients[tensor.name] = running.values(static_cast<TensorId>(i));
      return r;
    };
    const Result packed = run(0, kBoth, 0), across = run(0, kBoth, -1), first = run(0, kFirst, 0),
                 second = run(kFirst, kBoth, -1);
    std::vector<double> apart = first.losses;
    apart.insert(apart.end(), second.losses.begin(), second.losses.end());
    CHECK(reference::relative_error(packed.losses, apart) < 2e-6);
    CHECK(reference::relative_error(across.losses, apart) > 1e-3);
    CHECK(packed.gradients.size() > parameter_table(config).size());
    for (const auto& [name, gradient] : packed.gradients) {
      CAPTURE(name);
      std::vector<double> sum = first.gradients.at(name);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += second.gradients.at(name)[i];
      CHECK(reference::relative_error(gradient, sum) < 1e-5);
    }
  }
}

TEST_CASE("recipes: attention in long documents is that of each alone") {
  constexpr int64_t kHeads = 2, kSize = 20, kWidth = 4 * kSize, kTokens = 1100;  // one key-value head
  const std::vector<int64_t> begins = {0, 30, 31, 700, 768, kTokens};
  std::vector<int32_t> starts;
  for (size_t d = 0; d + 1 < begins.size(); ++d)
    starts.insert(starts.end(), static_cast<size_t>(begins[d + 1] - begins[d]), static_cast<int32_t>(begins[d]));
  const auto random = [](const char* name, int64_t count) {
    const std::vector<double> values = reference::random_values(name, count, DType::fp32, -2, 2);
    return std::vector<float>(values.begin(), values.end());
  };
  const std::vector<float> qkv = random("qkv", kTokens * kWidth), d_out = random("d_out", kTokens * kHeads * kSize);
  struct Result {
    std::vector<float> out, d_qkv, log_sum_exp;
  };
  const auto run = [&](int64_t begin, int64_t end, const int32_t* from, int threads) {
    ThreadTeam team(threads);
    const AttentionShape s{1, end - begin, kHeads, 1, kSize};
    Result r;
    r.out.resize(static_cast<size_t>((end - begin) * kHeads * kSize));
    r.d_qkv.resize(static_cast<size_t>((end - begin) * kWidth));
    r.log_sum_exp.resize(static_cast<size_t>((end - begin) * kHeads));
    std::vector<float> workspace(
        static_cast<size_t>(std::max(attention_workspace(s, threads), attention_backward_workspace(s, threads))));
    attention_forward(team, s, qkv.data() + begin * kWidth, r.out.data(), r.log_sum_exp.data(), workspace.data(), from);
    attention_backward(team, s, qkv.data() + begin * kWidth, r.out.data(), r.log_sum_exp.data(),
                       d_out.data() + begin * kHeads * kSize, r.d_qkv.data(), workspace.data(), from);
    return r;
  };
  const Result packed = run(0, kTokens, starts.data(), 2), other = run(0, kTokens, starts.data(), 3);
  CHECK(packed.out == other.out);
  CHECK(packed.d_qkv == other.d_qkv);
  for (size_t d = 0; d + 1 < begins.size(); ++d) {
    const int64_t begin = begins[d], end = begins[d + 1];
    const Result alone = run(begin, end, nullptr, 1);
    const auto same = [&](const std::vector<float>& all, const std::vector<float>& part, int64_t width) {
      return reference::relative_error({all.begin() + begin * width, all.begin() + end * width},
                                       {part.begin(), part.end()});
    };
    CHECK(same(packed.out, alone.out, kHeads * kSize) < 2e-6);
    CHECK(same(packed.d_qkv, alone.d_qkv, kWidth) < 4e-6);
  }
}

TEST_CASE("recipes: dropout is a function of seed and step alone") {
  const Folder folder;
  const std::string text = write_text(folder);
  TrainOptions o;
  o.steps = 6, o.save_every = 3, o.dropout = 0.2, o.grad_accum = 2;
  const auto weights = [&](const std::string& run, int64_t at = 6) {
    return read_file(folder / (run + "/checkpoints/" + std::to_string(at) + "/model.safetensors"));
  };
  const double val_loss = train(folder / "whole", text, small_model(), o).val_loss;
  CHECK(train(folder / "threads", text, small_model(), o, 3).val_loss == val_loss);
  CHECK(weights("threads") == weights("whole"));
  train(folder / "threads", text, small_model(), o, 1, 3);
  CHECK(weights("threads") == weights("whole"));
  o.dropout = 0;
  train(folder / "without", text, small_model(), o);
  CHECK(weights("without") != weights("whole"));

  // The bits are the same when everything is computed again in the backward pass.
  const ModelConfig config = reference::small_config("modern");
  const TrainingGraph t = build_training_graph(config, 2, 8, {}, DType::fp32, {.dropout = 0.3});
  const auto step = [&](RecomputeChoice choice, int64_t number, uint64_t seed) {
    Running running(t.graph, t.results(), config, {}, choice);
    running.put(t.tokens, some_tokens(16, config.vocabulary, 1)),
        running.put(t.targets, some_tokens(16, config.vocabulary, 2));
    std::fill_n(running.program->data(t.loss_weights), 16, 1.0f / 16);
    running.program->step = {.step = number, .seed = seed};
    running.program->run(kWholeStep);
    return std::pair(running.values(t.losses), running.values(t.gradient_norm));
  };
  const auto once = step({}, 0, 1);
  CHECK(step({}, 0, 1) == once);
  for (const Recompute level : {Recompute::activations, Recompute::attention, Recompute::block})
    CHECK(step({level, static_cast<int>(config.layers)}, 0, 1) == once);
  CHECK(step({}, 1, 1) != once);
  CHECK(step({}, 0, 2) != once);

  // The samples of a step have the same masks, however the step is cut into micro-steps.
  const auto gradients = [&](int64_t batch) {
    const TrainingGraph g = build_training_graph(config, batch, 8, {}, DType::fp32, {.dropout = 0.3});
    Running running(g.graph, g.results(), config);
    for (int64_t micro = 0; micro < 4 / batch; ++micro) {
      const std::vector<int32_t> tokens = some_tokens(32, config.vocabulary, 1);
      running.put(g.tokens, {tokens.begin() + micro * batch * 8, tokens.begin() + (micro + 1) * batch * 8});
      running.put(g.targets, {tokens.begin() + micro * batch * 8, tokens.begin() + (micro + 1) * batch * 8});
      std::fill_n(running.program->data(g.loss_weights), batch * 8, 1.0f / 32);
      running.program->step = {.step = 2, .micro_step = micro, .first_sample = 8 + micro * batch, .seed = 1};
      running.program->run(kMicroStep);
    }
    return running.values(running.program->graph().find("layers.0.qkv.weight.grad"));
  };
  const std::vector<double> whole = gradients(4);
  for (const int64_t batch : {1, 2}) CHECK(reference::relative_error(gradients(batch), whole) < 2e-6);

  // Each dropout has its own mask; evaluation and generation have no dropout.
  std::set<int64_t> streams;
  size_t count = 0;
  for (const Node& node : t.graph.nodes)
    if (node.phase == Phase::forward && node.op->name == std::string("dropout"))
      streams.insert(node.attributes.integer("stream")), ++count;
  CHECK(count == static_cast<size_t>(2 * config.layers + 1));
  CHECK(streams.size() == count);
  for (const Graph& g : {build_evaluation_graph(config, 2, 8).graph, build_paged_graph(config, 8, {1, 16, 1}).graph})
    for (const Node& node : g.nodes) CHECK(node.op->name != std::string("dropout"));
}
