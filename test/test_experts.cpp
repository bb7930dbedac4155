// Models with a mixture of experts: gradients, bits, balance, counts of parameters, and what belongs in a run's log.
#include <doctest/doctest.h>

#include <cmath>
#include <numeric>

#include "llm/base/atomic_file.h"
#include "llm/base/json.h"
#include "llm/graph/autodiff.h"
#include "llm/ops/router_sums.h"
#include "llm/train/rules.h"
#include "llm/train/trainer.h"
#include "test/command_line.h"
#include "test/helpers.h"
#include "test/reference.h"

using namespace llm;
using namespace test;

namespace {

using reference::Array;
using reference::kTokens;

constexpr int64_t kRows = 2;
const RecipeOptions kRecipe = {.balance_weight = 0.2, .router_z_loss = 0.1};

// The values in double of all tensors of the graph of a training step, before which the program ran its forward and its
// backward pass.
std::vector<Array> values_in_double(const reference::Trainer& trainer) {
  Graph g = trainer.graph.graph;
  std::erase_if(g.nodes, [](const Node& node) { return node.phase > Phase::backward; });
  std::vector<Array> values(g.tensors.size());
  const auto set = [&](TensorId id, const auto* from) {
    Array& to = values[static_cast<size_t>(id)] = reference::zeros(g.shape(id));
    std::copy_n(from, to.values.size(), to.values.begin());
  };
  for (size_t i = 0; i < g.tensors.size(); ++i)
    if (const auto id = static_cast<TensorId>(i); g.tensor(id).role == Role::parameter && g.tensor(id).alias == kNone)
      set(id, trainer.program->data(id));
  // The inputs again: the program has used their memory for other tensors meanwhile.
  trainer.prepare(*trainer.program, 0, 0);
  set(trainer.graph.tokens, trainer.program->data<int32_t>(trainer.graph.tokens));
  set(trainer.graph.targets, trainer.program->data<int32_t>(trainer.graph.targets));
  set(trainer.graph.loss_weights, trainer.program->data(trainer.graph.loss_weights));
  reference::evaluate(g, values, {});
  return values;
}

ModelConfig with_bias() {
  ModelConfig config = reference::small_config("experts");
  config.router_bias = true;
  return config;
}

}  // namespace

TEST_CASE("experts: loss and every gradient are those of naive loops in double precision") {
  for (const bool bias : {false, true}) {
    CAPTURE(bias);
    const ModelConfig config = bias ? with_bias() : reference::small_config("experts");
    reference::Trainer trainer(config, {.threads = 3, .batch = kRows, .recipe = kRecipe});
    trainer.run(0, Phase::backward);
    const TrainingGraph& t = trainer.graph;
    std::vector<std::vector<double>> gradients;
    for (const TensorId id : t.gradients) {
      REQUIRE(id != kNone);
      const float* values = trainer.program->data(id);
      gradients.emplace_back(values, values + t.graph.shape(id).elements());
    }
    std::vector<double> statistics(trainer.program->data(t.router_statistics[1]),
                                   trainer.program->data(t.router_statistics[1]) + config.experts + kRouterSums);
    const float loss = *trainer.program->data(t.loss);
    const std::vector<Array> expected = values_in_double(trainer);
    CHECK(loss == doctest::Approx(expected[static_cast<size_t>(t.loss)][0]).epsilon(1e-6));
    CHECK(reference::relative_error(statistics, expected[static_cast<size_t>(t.router_statistics[1])].values) <= 1e-6);
    const std::vector<Parameter> table = parameter_table(config);
    for (size_t i = 0; i < table.size(); ++i) {
      CAPTURE(table[i].name);
      const std::vector<double>& exact = expected[static_cast<size_t>(t.graph.storage(t.gradients[i]))].values;
      CHECK(std::any_of(exact.begin(), exact.end(), [](double v) { return v != 0; }));
      CHECK(reference::relative_error(gradients[i], exact) <= 2e-5);
    }
  }
}

TEST_CASE("experts: the same bits for any number of threads, with recomputation, and without sharing memory") {
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::muon}) {
    reference::Trainer::Settings settings{.threads = 1, .optimizer = {.kind = kind}, .recipe = kRecipe};
    const reference::Snapshot expected = reference::Trainer(with_bias(), settings).after_steps(3);
    settings.threads = 3;
    CHECK(reference::Trainer(with_bias(), settings).after_steps(3) == expected);
    for (const Recompute level : {Recompute::activations, Recompute::norms, Recompute::attention, Recompute::block}) {
      settings.recompute = {level, 3};
      CHECK(reference::Trainer(with_bias(), settings).after_steps(3) == expected);
    }
    settings.compile.share_memory = false;
    CHECK(reference::Trainer(with_bias(), settings).after_steps(3) == expected);
  }
}

TEST_CASE("experts: the loss and the bias both spread the tokens") {
  // The largest share of an expert in the last 50 steps' tokens, in units of an even share.
  const auto load_after = [](const ModelConfig& config, double balance_weight) {
    reference::Trainer trainer(config,
                               {.optimizer = {.weight_decay = 0}, .recipe = {.balance_weight = balance_weight}});
    const auto experts = static_cast<size_t>(config.experts);
    std::vector<double> counts(experts * static_cast<size_t>(config.layers), 0);
    constexpr int kSteps = 250, kCounted = 50;
    for (int step = 0; step < kSteps; ++step) {
      trainer.run(step, Phase::optimizer);
      for (size_t i = 0; i < counts.size() && step >= kSteps - kCounted; ++i)
        counts[i] += trainer.program->data(trainer.graph.router_statistics[i / experts])[i % experts];
    }
    const auto choices = static_cast<double>(kCounted * reference::kBatch * kTokens * config.experts_per_token);
    CHECK(std::accumulate(counts.begin(), counts.end(), 0.0) == choices * static_cast<double>(config.layers));
    return *std::max_element(counts.begin(), counts.end()) * static_cast<double>(experts) / choices;
  };
  const double alone = load_after(reference::small_config("experts"), 0);
  const double by_loss = load_after(reference::small_config("experts"), 0.05), by_bias = load_after(with_bias(), 0);
  MESSAGE("largest load ", alone, ", with the loss ", by_loss, ", with the bias ", by_bias);
  CHECK(by_loss < 1.3);
  // How far apart they are depends on last bits, and so on the compiler.
  CHECK(by_loss < alone - 0.1);
  CHECK(by_bias < alone - 0.1);
}

TEST_CASE("experts: parameters and FLOPs that count") {
  ModelConfig dense = reference::small_config("modern"), c = dense;
  c.experts = 6, c.experts_per_token = 3, c.hidden = dense.hidden / 3;
  const int64_t routers = c.layers * c.experts * c.channels;
  CHECK(active_parameter_count(dense) == parameter_count(dense));
  CHECK(active_parameter_count(c) == parameter_count(dense) + routers);
  CHECK(parameter_count(c) == parameter_count(dense) + routers + c.layers * 3 * dense.hidden * c.channels);
  CHECK(training_flops_per_token(c, 24) == training_flops_per_token(dense, 24) + 6.0 * static_cast<double>(routers));
  // Muon makes each expert's matrices orthogonal: gate, up and down of each.
  for (const Parameter& p : parameter_table(c)) {
    if (!p.name.ends_with("experts_in.weight") && !p.name.ends_with("experts_out.weight")) continue;
    CHECK(takes_muon(p, OptimizerKind::muon));
    CHECK(p.experts == 6);
    CHECK(p.joined.size() == (p.name.ends_with("in.weight") ? 12 : 6));
    CHECK(p.file_parts.size() == p.joined.size());
  }
  const auto refusal = [&](const std::function<void(ModelConfig&)>& change) {
    ModelConfig changed = c;
    change(changed);
    return error_of([&] { changed.check(); });
  };
  CHECK(has(refusal([](ModelConfig& m) { m.experts_per_token = 1; }), "experts-per-token"));
  CHECK(has(refusal([](ModelConfig& m) { m.experts_per_token = 7; }), "experts-per-token"));
  CHECK(has(refusal([](ModelConfig& m) { m.experts = 1; }), "experts"));
  CHECK(has(refusal([](ModelConfig& m) { m.activation = Activation::gelu; }), "gated"));
  CHECK(has(refusal([](ModelConfig& m) { m.bias = true; }), "biases"));
}

TEST_CASE("cli: a run with experts, its log, and its checkpoint") {
  if (binary().empty()) return;
  const Folder folder;
  write_file_atomically(folder / "text.txt", sample_text(4000));
  const std::vector<std::string> flags = {"train",
                                          "nano",
                                          "--data",
                                          folder / "text.txt",
                                          "--experts",
                                          "4",
                                          "--expert-balance",
                                          "bias",
                                          "--shared-expert-hidden",
                                          "32",
                                          "--batch",
                                          "4",
                                          "--eval-every",
                                          "5",
                                          "--eval-batches",
                                          "1",
                                          "--sample-every",
                                          "0",
                                          "--optimizer",
                                          "muon",
                                          "--save-every",
                                          "5"};
  const auto train = [&](const std::string& out, const std::vector<std::string>& more) {
    std::vector<std::string> arguments = flags;
    arguments.insert(arguments.end(), {"--out", folder / out});
    arguments.insert(arguments.end(), more.begin(), more.end());
    run_well(folder, arguments);
  };
  train("whole", {"--steps", "10"});
  const auto log = read_log(folder / "whole");
  REQUIRE(log.size() == 10);
  for (const char* key : {"expert_load", "balance_loss", "router_entropy"}) CHECK(log.at(10).contains(key));
  CHECK(log.at(10)["expert_load"].get<double>() >= 1);
  CHECK(log.at(10)["router_entropy"].get<double>() <= std::log(4.0) + 1e-6);
  const Json config = read_json(folder / "whole/checkpoints/10/config.json");
  CHECK(config["experts"] == Json(4));
  CHECK(config["router_bias"] == Json(true));
  CHECK(read_json(folder / "whole/config.json")["model"]["active_parameters"].is_number());
  // Resumed from step 5, it is the same run.
  std::filesystem::create_directories(folder / "again");
  std::filesystem::copy(folder / "whole", folder / "again", std::filesystem::copy_options::recursive);
  std::filesystem::remove_all(folder / "again/checkpoints/10");
  run_well(folder, {"train", "--resume", "--out", folder / "again"});
  for (const char* file : {"model.safetensors", "optimizer.state"})
    CHECK(read_file(folder / "again/checkpoints/10/" + std::string(file)) ==
          read_file(folder / "whole/checkpoints/10/" + std::string(file)));
  CHECK(has(run_well(folder, {"graph", folder / "whole", "--batch", "2"}), "grouped_linear"));
  CHECK(!run_well(folder, {"generate", folder / "whole", "--prompt", "a", "--max-tokens", "3", "--ids"}).empty());

  check_error(folder, {"train", "nano", "--data", folder / "text.txt", "--experts-per-token", "2"}, 2, "--experts");
  check_error(folder, {"train", "nano", "--data", folder / "text.txt", "--experts", "4", "--experts-per-token", "1"}, 2,
              "--experts-per-token");
  check_error(folder, {"train", "nano", "--data", folder / "text.txt", "--experts", "4", "--hidden", "64"}, 2,
              "--expert-hidden");
  check_error(folder, {"graph", "nano", "--experts", "4", "--dtype", "fp8"}, 1, "--dtype bf16");
}
