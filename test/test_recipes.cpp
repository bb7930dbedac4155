// The switches of a recipe in whole models: initial values, caps and extra terms of the loss, masks, dropout, and what happens
// to steps that stick out.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "llm/base/atomic_file.h"
#include "llm/base/random.h"
#include "llm/model/huggingface.h"
#include "llm/train/trainer.h"
#include "test/helpers.h"
#include "test/reference.h"

using namespace llm;
using namespace test;

namespace {

ModelConfig small_model() {
  ModelConfig c = config_of(preset_named("nano"));
  c.context = 16, c.channels = 32, c.heads = c.kv_heads = 2, c.head_size = 16, c.hidden = 64;
  return c;
}

std::string write_text(const Folder& folder) {
  const std::string path = folder / "text.txt";
  std::ofstream file(path);
  for (int i = 0; i < 300; ++i) file << "line " << i * i % 97 << " of the text\n";
  return path;
}

// A run of `steps` steps with a checkpoint after each `save_every`; `resume_from` > 0 goes on from there.
Trainer::Outcome train(const std::string& run, const std::string& text, const ModelConfig& model, TrainOptions o,
                       int threads = 2, int64_t resume_from = 0) {
  ThreadTeam team(threads);
  o.data = text, o.out = run;
  o.batch = 4, o.lr = 0.01, o.eval_every = 1000, o.sample_every = 0, o.keep_last = 0;
  Dataset dataset = open_dataset(text, run + "/tokens", team);
  apply_rules(o, model, 100);
  Trainer trainer(model, o, std::move(dataset), {team});
  trainer.allocate();
  if (resume_from > 0)
    trainer.load(run + "/checkpoints/" + std::to_string(resume_from));
  else
    trainer.initialise();
  return trainer.run(0);
}

// A graph of a model that runs, with initial values as a training run has them.
struct Running {
  ThreadTeam team;
  PersistentLayout layout;
  std::unique_ptr<Program> program;
  std::unique_ptr<Arena> arena;

  Running(const Graph& g, const std::vector<TensorId>& results, const ModelConfig& config,
          const CompileOptions& options = {}, RecomputeChoice recomputed = {}, int threads = 2)
      : team(threads) {
    layout.add(g);
    Graph graph = g;
    recompute(graph, recomputed);
    program = std::make_unique<Program>(compile(graph, results, options), layout);
    arena = std::make_unique<Arena>(program->arena_bytes());
    program->bind(*arena, team);
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
      // One step of AdamW moves each element by the learning rate at the most.
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
  const TrainingGraph t = build_training_graph(config, kBatch, kTokens, {}, 2, {.z_loss = 0.1});
  const std::vector<int32_t> tokens = some_tokens(kBatch * kTokens, config.vocabulary, 1);
  std::vector<int32_t> targets = some_tokens(kBatch * kTokens, config.vocabulary, 2);
  targets[3] = -1;
  const auto run = [&](bool fuse) {
    CompileOptions options;
    options.fuse = fuse;
    auto running = std::make_unique<Running>(t.graph, t.results(), config, options);
    running->put(t.tokens, tokens), running->put(t.targets, targets);
    std::fill_n(running->program->data(t.loss_weights), kBatch * kTokens, 1.0f / (kBatch * kTokens));
    running->program->run(Phase::forward, Phase::optimizer);
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

  // Generation has the same cap, and no z-loss.
  const EvaluationGraph e = build_evaluation_graph(config, kBatch, kTokens, 2);
  Running evaluation(e.graph, e.results(), config);
  evaluation.put(e.tokens, tokens), evaluation.put(e.targets, targets);
  evaluation.program->run(Phase::forward, Phase::forward);
  const GenerationGraph n = build_generation_graph(config, kBatch, kTokens, kTokens, 2);
  Running generation(n.graph, n.results(), config);
  generation.put(n.tokens, tokens);
  generation.program->run(Phase::forward, Phase::forward);
  const std::vector<double> logits = generation.values(n.logits), evaluated = evaluation.values(e.losses);
  for (size_t b = 0; b < kBatch; ++b) {
    const auto row = logits.begin() + static_cast<std::ptrdiff_t>(b) * config.vocabulary;
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

  // transformers has no such model: the config says so, and survives.
  CHECK(model_type_of(config) == "train_gpt");
  CHECK(parse_config(config_json(config, {}), "here") == config);
}
