// Whole models against PyTorch's float64 numbers: loss, logits, every gradient, and ten steps of AdamW.
// scripts/make_reference.py makes the files; test/data/reference/README.md says what they hold. Tolerances are
// multiples of the error of PyTorch's own float32 on the same model, which the files hold too.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "llm/base/rounding.h"
#include "llm/device/cpu.h"
#include "llm/graph/program.h"
#include "llm/model/gpt.h"
#include "llm/model/huggingface.h"
#include "llm/model/safetensors.h"
#include "test/reference.h"

namespace {

using namespace llm;
using nlohmann::json;

const char* const kFolder = "test/data/reference";

// The allowed error, in units of PyTorch's own float32 error. The environment variable MODEL_ERRORS prints what is
// measured.
constexpr double kFactor = 3;
// Some of PyTorch's errors are zero by luck; the bound is never below a few units in the last place.
constexpr double kLeast = 4 * 0x1p-24;

json read_json(const std::string& path) {
  std::ifstream file(path);
  REQUIRE_MESSAGE(file.good(), "cannot open ", path,
                  "; run the tests from the repository's root, or make the file with ", "scripts/make_reference.py");
  return json::parse(file);
}

// A reference model: its config, its weights and the expected numbers.
struct Model {
  std::string folder;
  json expected;
  ModelConfig config;
  std::vector<Parameter> table;

  explicit Model(const std::string& kind) : folder(std::string(kFolder) + "/" + kind) {
    expected = read_json(folder + "/expected.json");
    config = read_config(folder);
    table = parameter_table(config);
  }
  int64_t batch() const { return expected["batch"]; }
  int64_t tokens() const { return expected["tokens_per_row"]; }
  OptimizerOptions optimizer() const {
    const json& o = expected["optimizer"];
    return {o["beta1"], o["beta2"], o["epsilon"], o["weight_decay"], o["grad_clip"]};
  }
  // The tensors of a .safetensors file, in the order and form of the parameter table.
  std::vector<std::vector<float>> read(const std::string& file) const {
    std::vector<std::vector<float>> values;
    for (const Parameter& p : table) values.emplace_back(static_cast<size_t>(p.shape.elements()));
    load_parameters(folder + "/" + file, table, [&](size_t i) { return values[i].data(); });
    return values;
  }
};

// A compiled graph with memory of its own, which holds the model's parameters.
struct Run {
  ThreadTeam team{2};
  CpuDevice device{team};
  PersistentLayout layout;
  std::unique_ptr<Program> program;
  std::unique_ptr<Arena> arena;

  Run(const Model& model, const Graph& graph, const std::vector<TensorId>& results, bool fused) {
    layout.add(graph);
    program = std::make_unique<Program>(compile(graph, results, {.threads = 2}, {.fuse = fused}), layout);
    arena = std::make_unique<Arena>(program->arena_bytes(), device);
    program->bind(*arena);
    const std::vector<std::vector<float>> weights = model.read("model.safetensors");
    for (size_t i = 0; i < weights.size(); ++i) {
      const TensorId id = program->graph().find(model.table[i].name);
      std::copy(weights[i].begin(), weights[i].end(), program->data(id));
    }
  }
  void fill_int(TensorId id, const json& rows) {
    auto* to = program->data<int32_t>(id);
    for (const json& row : rows)
      for (const json& value : row) *to++ = value.get<int32_t>();
  }
};

struct Training : Run {
  TrainingGraph graph;
  int64_t count;

  Training(const Model& model, TrainingGraph g, bool fused, std::vector<TensorId> more_results = {})
      : Run(model, g.graph, join(g.results(), more_results), fused),
        graph(std::move(g)),
        count(model.batch() * model.tokens()) {}
  static std::vector<TensorId> join(std::vector<TensorId> a, const std::vector<TensorId>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  }
  // Runs the phases up to `last` and returns the mean loss of `batch`; with Phase::optimizer that is a whole step.
  double step(const json& batch, Phase last) {
    fill_int(graph.tokens, batch["tokens"]);
    fill_int(graph.targets, batch["targets"]);
    std::fill_n(program->data(graph.loss_weights), count, 1.0f / static_cast<float>(count));
    program->run(reference::up_to(last));
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += program->data(graph.losses)[i];
    return sum / static_cast<double>(count);
  }
};

double relative(double a, double b) { return std::abs(a - b) / std::abs(b); }

// Checks `error` against PyTorch's.
void hold(const std::string& what, double error, double baseline) {
  if (std::getenv("MODEL_ERRORS"))
    std::cout << what << " " << error << " " << baseline << " " << error / baseline << "\n";
  INFO(what);
  CHECK(error <= std::max(kFactor * baseline, kLeast));
}

void check_gradients(const Model& model, const std::string& name, const Training& training) {
  const std::vector<std::vector<float>> expected = model.read("gradients.safetensors");
  const json& baselines = model.expected["float32_error"]["gradients"];
  // The error of one tensor is a single draw: where PyTorch's is below the average over the model's tensors, the
  // average counts.
  double average = 0;
  for (const json& baseline : baselines) average += baseline.get<double>() / static_cast<double>(baselines.size());
  for (size_t i = 0; i < model.table.size(); ++i) {
    const Parameter& p = model.table[i];
    const TensorId id = training.program->graph().find(p.name + ".grad");
    REQUIRE(id != kNone);
    const float* gradient = training.program->data(id);
    for (const FilePart& part : p.file_parts) {
      const int64_t columns = p.shape.rank() == 2 ? p.shape[1] : 1, first = part.first_row * columns;
      const auto slice = [&](const float* from) {
        return std::vector<double>(from + first, from + first + part.rows * columns);
      };
      hold(name + " gradient of " + part.name, reference::relative_error(slice(gradient), slice(expected[i].data())),
           std::max(average, baselines.at(part.name).get<double>()));
    }
  }
}

void check_training(const std::string& kind, bool fused) {
  const Model model(kind);
  const json& expected = model.expected;
  const json& baseline = expected["float32_error"];
  TrainingGraph g = build_training_graph(model.config, model.batch(), model.tokens(), model.optimizer());
  const TensorId logits = g.graph.find("logits");
  Training training(model, std::move(g), fused, fused ? std::vector<TensorId>{} : std::vector<TensorId>{logits});
  const std::string name = kind + (fused ? ", fused," : "");

  const double loss = training.step(expected["batches"][0], Phase::backward);
  hold(name + " loss", relative(loss, expected["loss"]), baseline["loss"]);
  check_gradients(model, name, training);
  if (!fused) {
    std::vector<double> ours, theirs;
    for (const json& place : expected["logits"]) {
      const int64_t row = place["row"].get<int64_t>() * model.tokens() + place["position"].get<int64_t>();
      const float* values = training.program->data(logits) + row * model.config.vocabulary;
      ours.insert(ours.end(), values, values + model.config.vocabulary);
      for (const json& value : place["values"]) theirs.push_back(value);
    }
    hold(name + " logits", reference::relative_error(ours, theirs), baseline["logits"]);
  }

  double losses = 0, norms = 0;
  for (size_t i = 0; i < expected["losses"].size(); ++i) {
    training.program->step = {.learning_rate = expected["optimizer"]["learning_rate"], .step = static_cast<int64_t>(i)};
    losses = std::max(losses, relative(training.step(expected["batches"][i], Phase::optimizer), expected["losses"][i]));
    norms = std::max(norms, relative(*training.program->data(training.graph.gradient_norm), expected["grad_norms"][i]));
  }
  hold(name + " losses of ten steps", losses, baseline["losses"]);
  hold(name + " gradient norms of ten steps", norms, baseline["grad_norms"]);
  hold(name + " loss afterwards",
       relative(training.step(expected["batches"][0], Phase::forward), expected["loss_after"]), baseline["loss_after"]);
}

// The logits through key-value blocks are the same, with the whole text at once or token by token.
void check_generation(const std::string& kind) {
  const Model model(kind);
  const json& tokens = model.expected["batches"][0]["tokens"];
  constexpr int64_t kBlock = 16;
  const int64_t columns = ceil_div(model.config.context, kBlock), batch = model.batch();
  for (const bool at_once : {true, false})
    for (const json& place : model.expected["logits"]) {
      const int64_t position = place["position"], count = at_once ? position + 1 : 1, size = batch * count;
      const PagedGraph g = build_paged_graph(model.config, size, {batch * columns, kBlock, batch}, DType::fp32, true);
      Run run(model, g.graph, g.results(), true);
      auto* const table = run.program->data<int32_t>(g.graph.find("block_tables"));
      for (int64_t i = 0; i < batch * columns; ++i) table[i] = static_cast<int32_t>(batch * columns - 1 - i);
      for (int64_t at = 0; at <= position; at += count) {
        json rows = json::array({json::array(), json::array(), json::array()});
        for (int64_t row = 0; row < batch; ++row)
          for (int64_t i = at; i < at + count; ++i)
            rows[0].push_back(tokens[row][i]), rows[1].push_back(i), rows[2].push_back(row);
        run.fill_int(g.rows, rows);
        run.program->run(Phase::forward);
      }
      const int64_t last = (place["row"].get<int64_t>() + 1) * count - 1;
      const float* values = run.program->data(g.logits) + last * model.config.vocabulary;
      hold(kind + (at_once ? " logits at once" : " logits token by token"),
           reference::relative_error({values, values + model.config.vocabulary}, place["values"]),
           model.expected["float32_error"]["logits"]);
    }
}

}  // namespace

TEST_CASE("model: loss, logits, gradients and ten steps of AdamW as PyTorch has them") {
  for (const char* kind : {"gpt2", "llama", "qwen3", "relu2"}) {
    CAPTURE(kind);
    check_training(kind, false);
    check_training(kind, true);
  }
}

TEST_CASE("model: logits through key-value blocks as PyTorch has them") {
  for (const char* kind : {"gpt2", "llama", "qwen3", "relu2"}) check_generation(kind);
}
