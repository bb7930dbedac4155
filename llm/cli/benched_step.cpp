// The step that bench measures: the graph that training runs, with initial parameters and random tokens.
#include <chrono>

#include "llm/base/random.h"
#include "llm/cli/bench.h"
#include "llm/graph/op.h"
#include "llm/graph/staging.h"
#include "llm/model/gpt.h"

namespace llm {

BenchedStep::BenchedStep(const BenchFlags& flags, Device& on, const ModelConfig& config)
    : on_(on), tokens_a_step_(flags.batch * config.context), vocabulary_(config.vocabulary) {
  const Target target = target_on(on, flags.device.precision());
  TrainingGraph t = build_training_graph(config, flags.batch, config.context, optimizer_of(flags.recipe),
                                         dtype_of(target.precision), recipe_without_data(flags.recipe, config));
  tokens_ = t.tokens, targets_ = t.targets, loss_weights_ = t.loss_weights;
  Compiled compiled = compile(std::move(t.graph), t.results(), target);
  layout_.add(compiled.graph);
  whole_ = std::make_unique<Program>(std::move(compiled), layout_);
  arena_ = std::make_unique<Arena>(whole_->arena_bytes(), on);
  whole_->bind(*arena_);
  Staging staging(*arena_, layout_);
  for (const Parameter& p : parameter_table(config, parametrization_of(flags.recipe))) {
    initialise(on.threads(), p, 1, staging.room(p.name, p.shape.elements()));
    if (layout_.has(master_of(p.name)))
      initialise(on.threads(), p, 1, staging.room(master_of(p.name), p.shape.elements()));
  }
  staging.flush();
}

std::unique_ptr<Program> BenchedStep::only(const std::string& op) const {
  Compiled part = whole_->compiled();
  std::erase_if(part.graph.nodes, [&](const Node& node) { return node.op->name != op; });
  auto program = std::make_unique<Program>(std::move(part), layout_);
  program->bind(*arena_);
  return program;
}

double BenchedStep::run(Program& program, int64_t step, std::vector<double>* seconds) {
  fill_inputs(step);
  program.step = {.learning_rate = 1e-4f, .step = step};
  const auto start = std::chrono::steady_clock::now();
  program.run(kWholeStep, seconds);
  on_.wait();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Before each step: inputs are places in the arena, too, that other tensors take over after their last use.
void BenchedStep::fill_inputs(int64_t step) {
  const Random random(static_cast<uint64_t>(step), stream_of("bench"));
  const auto token = [&](int64_t i) {
    return static_cast<int32_t>(random.uniform(static_cast<uint64_t>(i)) * static_cast<double>(vocabulary_));
  };
  std::vector<int32_t> tokens(static_cast<size_t>(tokens_a_step_) + 1);
  for (int64_t i = 0; i <= tokens_a_step_; ++i) tokens[static_cast<size_t>(i)] = token(i);
  whole_->write(tokens_, tokens.data());
  whole_->write(targets_, tokens.data() + 1);
  const std::vector<float> weights(static_cast<size_t>(tokens_a_step_), 1.0f / static_cast<float>(tokens_a_step_));
  whole_->write(loss_weights_, weights.data());
}

}  // namespace llm
