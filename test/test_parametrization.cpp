// muP and CompleteP: the coordinate check (Yang et al. 2022, appendix D.1; Dey et al. 2025, figure 3), that activations
// after a few steps have the same size at every width and depth; and the multipliers of the parameter table.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "llm/base/random.h"
#include "llm/device/cpu.h"
#include "llm/graph/op.h"
#include "llm/graph/passes.h"
#include "llm/graph/program.h"
#include "llm/model/gpt.h"
#include "test/helpers.h"

using namespace llm;
using namespace test;

namespace {

constexpr uint64_t kSeeds[] = {1, 2, 3, 4};
constexpr int kSteps = 4;
constexpr int64_t kVocabulary = 16;  // few tokens, whose random embeddings are nearly orthogonal at every width

ModelConfig shaped(int64_t channels, int64_t layers) {
  ModelConfig c = small_model();
  c.vocabulary = kVocabulary, c.context = 32, c.layers = layers, c.channels = channels, c.hidden = 11 * channels / 4;
  c.head_size = 16, c.heads = c.kv_heads = channels / 16;
  return c;
}

// Root mean squares of activations over several seeds, after kSteps steps on the same few tokens.
std::map<std::string, double> sizes(const ModelConfig& config, OptimizerKind kind, const Parametrization& how,
                                    float learning_rate) {
  constexpr int64_t kBatch = 2, kTokens = 32;
  OptimizerOptions optimizer;
  optimizer.kind = kind, optimizer.grad_clip = 0;
  const TrainingGraph t =
      build_training_graph(config, kBatch, kTokens, optimizer, DType::fp32, {.parametrization = how});
  std::map<std::string, TensorId> looked_at = {{"embedding", t.graph.find("embedding")},
                                               {"logits", t.graph.find("logits")},
                                               {"final_norm", t.graph.find("final_norm")}};
  const std::string last = concat("layers.", config.layers - 1, ".");
  for (const char* name : {"qkv", "attention", "attention_sum", "mlp_in", "mlp_sum"})
    looked_at[name] = t.graph.find(last + name);
  std::vector<TensorId> results = t.results();
  for (const auto& [name, id] : looked_at) {
    REQUIRE_MESSAGE(id != kNone, name);
    results.push_back(id);
  }
  PersistentLayout layout;
  layout.add(t.graph);
  ThreadTeam team(2);
  CpuDevice device(team);
  CompileOptions plain;
  plain.fuse = false;
  Program program(compile(t.graph, results, {.threads = 2}, plain), layout);
  Arena arena(program.arena_bytes(), device);
  program.bind(arena);
  std::map<std::string, double> squares;
  for (const uint64_t seed : kSeeds) {
    for (const StateTensor& state : optimizer_state(parameter_table(config), kind))
      std::fill_n(program.data(t.graph.find(state.name)), state.shape.elements(), 0.0f);
    for (const Parameter& p : parameter_table(config, how))
      initialise(team, p, seed, program.data(t.graph.find(p.name)));
    for (int step = 0; step <= kSteps; ++step) {
      const Random random(seed, 1);
      for (int64_t i = 0; i < kBatch * kTokens; ++i) {
        program.data<int32_t>(t.tokens)[i] = static_cast<int32_t>(random.bits(static_cast<uint64_t>(i)) % kVocabulary);
        program.data<int32_t>(t.targets)[i] =
            static_cast<int32_t>(random.bits(static_cast<uint64_t>(i + 1)) % kVocabulary);
        program.data(t.loss_weights)[i] = 1.0f / (kBatch * kTokens);
      }
      program.step = {.learning_rate = learning_rate, .step = step};
      program.run(step < kSteps ? kWholeStep : Phases(Phase::forward));
    }
    for (const auto& [name, id] : looked_at) {
      const int64_t elements = t.graph.shape(id).elements();
      for (int64_t i = 0; i < elements; ++i)
        squares[name] +=
            std::pow(program.data(id)[i], 2) / static_cast<double>(static_cast<int64_t>(std::size(kSeeds)) * elements);
    }
  }
  for (auto& [name, value] : squares) value = std::sqrt(value);
  return squares;
}

// The slope of log(value) over log(size), by least squares.
double slope(const std::vector<std::pair<double, double>>& points) {
  double n = 0, x = 0, y = 0, xx = 0, xy = 0;
  for (const auto& [size, value] : points) {
    const double a = std::log(size), b = std::log(value);
    n += 1, x += a, y += b, xx += a * a, xy += a * b;
  }
  return (n * xy - x * y) / (n * xx - x * x);
}

using Sweep = std::map<int64_t, std::map<std::string, double>>;

std::map<std::string, double> slopes(const Sweep& sweep) {
  std::map<std::string, double> result;
  for (const auto& [name, first] : sweep.begin()->second) {
    std::vector<std::pair<double, double>> points;
    for (const auto& [size, values] : sweep) points.emplace_back(static_cast<double>(size), values.at(name));
    result[name] = slope(points);
  }
  return result;
}

}  // namespace

TEST_CASE("parametrization: coordinate check, activations keep their size over 8 times the width") {
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::muon}) {
    Sweep complete, standard;
    for (const int64_t channels : {48, 96, 192, 384}) {
      complete[channels] = sizes(shaped(channels, 2), kind, {.complete_p = true, .zero_projections = true}, 2e-3f);
      standard[channels] = sizes(shaped(channels, 2), kind, {.zero_projections = true}, 2e-3f);
    }
    double worst = 0;
    for (const auto& [name, value] : slopes(complete)) {
      CHECK_MESSAGE(std::abs(value) <= 0.05, name_of(kind), " ", name, " grows as the power ", value);
    }
    for (const auto& [name, value] : slopes(standard)) worst = std::max(worst, std::abs(value));
    CHECK_MESSAGE(worst > 0.15, "without it they grow");
  }
}

TEST_CASE("parametrization: coordinate check, activations keep their size over 4 times the depth") {
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::muon}) {
    Sweep complete, standard;
    for (const int64_t layers : {4, 8, 16}) {
      complete[layers] = sizes(shaped(64, layers), kind, {.complete_p = true, .zero_projections = true}, 2.5e-3f);
      standard[layers] = sizes(shaped(64, layers), kind, {.zero_projections = true}, 2.5e-3f);
    }
    double worst = 0;
    for (const auto& [name, value] : slopes(complete)) {
      if (name == "attention_sum") continue;  // it lacks the last branch, whose share differs with the depth
      CHECK_MESSAGE(std::abs(value) <= 0.05, name_of(kind), " ", name, " grows as the power ", value);
    }
    for (const auto& [name, value] : slopes(standard)) worst = std::max(worst, std::abs(value));
    CHECK_MESSAGE(worst > 0.15, "without it they grow");
  }
}

TEST_CASE("parametrization: the table's multipliers") {
  const auto find = [](const std::vector<Parameter>& table, const std::string& name) {
    return *std::find_if(table.begin(), table.end(), [&](const Parameter& p) { return p.name == name; });
  };
  const Parametrization how{.complete_p = true, .zero_projections = true};
  ModelConfig config = config_of(preset_named("tiny"));
  const std::vector<Parameter> base = parameter_table(config, how);
  config.layers *= 2, config.channels *= 4, config.heads *= 4, config.kv_heads *= 4, config.hidden *= 4;
  const std::vector<Parameter> large = parameter_table(config, how);
  const auto ratio = [&](const std::string& name, auto member) {
    return find(large, name).*member / find(base, name).*member;
  };
  for (const char* name : {"layers.0.qkv.weight", "layers.3.mlp_in.weight"}) {
    CAPTURE(name);
    CHECK(ratio(name, &Parameter::init_std) == doctest::Approx(0.5));
    CHECK(ratio(name, &Parameter::adamw_rate) == doctest::Approx(0.25));
    CHECK(ratio(name, &Parameter::muon_rate) == doctest::Approx(0.5));
    CHECK(ratio(name, &Parameter::epsilon) == doctest::Approx(0.125));
    CHECK(ratio(name, &Parameter::forward) == 1);
  }
  for (const char* name : {"layers.0.attention_out.weight", "layers.3.mlp_out.weight"}) {
    CAPTURE(name);
    CHECK(find(large, name).init == Parameter::Init::zeros);
    CHECK(ratio(name, &Parameter::adamw_rate) == doctest::Approx(0.125));
    CHECK(ratio(name, &Parameter::muon_rate) == doctest::Approx(0.25));
    CHECK(ratio(name, &Parameter::epsilon) == doctest::Approx(0.25));
    CHECK(ratio(name, &Parameter::forward) == doctest::Approx(0.5));
  }
  CHECK(ratio("token_embedding.weight", &Parameter::init_std) == 1);
  CHECK(ratio("token_embedding.weight", &Parameter::adamw_rate) == 1);
  CHECK(ratio("head.weight", &Parameter::adamw_rate) == doctest::Approx(0.25));
  CHECK(ratio("head.weight", &Parameter::epsilon) == 1);
  CHECK(ratio("final_norm.weight", &Parameter::adamw_rate) == 1);
  for (const Parameter& p : parameter_table(config)) {
    CAPTURE(p.name);
    CHECK(p.adamw_rate == 1);
    CHECK(p.muon_rate == 1);
    CHECK(p.epsilon == 1);
  }
  // Where the last product of a branch is drawn, it is the smaller the deeper the model is.
  const Parametrization drawn{.complete_p = true};
  const double deep = find(parameter_table(config, drawn), "layers.0.mlp_out.weight").init_std;
  config.layers /= 2;
  CHECK(find(parameter_table(config, drawn), "layers.0.mlp_out.weight").init_std == doctest::Approx(2 * deep));
}

TEST_CASE("parametrization: the multipliers are those of the steps") {
  ModelConfig config = shaped(64, 2);
  const Parametrization how{.complete_p = true};
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::muon}) {
    OptimizerOptions optimizer;
    optimizer.kind = kind, optimizer.weight_decay = 0.5;
    const Graph g = build_training_graph(config, 2, 32, optimizer, DType::fp32, {.parametrization = how}).graph;
    int seen = 0;
    for (const Parameter& p : parameter_table(config, how)) {
      const bool muon = takes_muon(p, kind);
      const double rate = muon ? p.muon_rate : p.adamw_rate;
      for (const Node& node : g.nodes) {
        if (node.op->name != std::string(muon ? "muon_apply" : "adamw")) continue;
        if (std::find(node.inputs.begin(), node.inputs.end(), g.find(p.name)) == node.inputs.end()) continue;
        CAPTURE(p.name);
        ++seen;
        CHECK(node.attributes.number("learning_rate_scale") == rate);
        CHECK(node.attributes.number("weight_decay") == doctest::Approx(p.decay ? 0.5 / rate : 0));
        if (!muon) CHECK(node.attributes.number("epsilon") == doctest::Approx(optimizer.epsilon * p.epsilon));
      }
    }
    CHECK(seen == static_cast<int>(parameter_table(config).size()));
  }
}
