// The switches of a recipe in whole models: initial values, caps and extra terms of the loss, masks, dropout, and what happens
// to steps that stick out.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "llm/base/atomic_file.h"
#include "llm/model/safetensors.h"
#include "llm/train/trainer.h"
#include "test/helpers.h"

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
