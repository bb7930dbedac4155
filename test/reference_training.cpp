// A small model that trains, and the bits of its tensors.
#include <cstring>

#include "llm/base/random.h"
#include "llm/graph/staging.h"
#include "test/reference.h"

namespace llm::reference {

Words words_of(const Program& program, TensorId id) {
  Words words(program.graph().tensor(id).bytes() / 4);
  std::memcpy(words.data(), program.data<void>(id), words.size() * 4);
  return words;
}

double difference(const Words& a, const Words& b) {
  const auto values = [](const Words& words) {
    std::vector<float> floats(words.size());
    std::memcpy(floats.data(), words.data(), words.size() * 4);
    return std::vector<double>(floats.begin(), floats.end());
  };
  return relative_error(values(a), values(b));
}

ModelConfig small_config(const std::string& architecture) {
  ModelConfig c;
  const bool relu2 = architecture == "relu2";
  set_architecture(c, find_value<Architecture>(architecture).value_or(Architecture::modern));
  if (relu2) c.activation = Activation::relu2;
  c.vocabulary = 70, c.context = 24, c.layers = 3, c.heads = 4, c.channels = 40, c.head_size = 10, c.hidden = 72;
  c.kv_heads = architecture == "gpt2" ? 4 : 2;
  if (architecture == "experts") c.experts = 4, c.experts_per_token = 2, c.hidden = 36, c.shared_hidden = 20;
  return c;
}

Trainer::Trainer(const ModelConfig& config, const Settings& s)
    : graph(build_training_graph(config, s.batch, kTokens, s.optimizer, dtype_of(s.precision), s.recipe)),
      logits(graph.graph.find("logits")),
      team(s.threads) {
  layout.add(graph.graph);
  Graph g = graph.graph;
  llm::recompute(g, s.recompute);
  std::vector<TensorId> results = graph.results();
  if (s.keep_logits) results.push_back(logits);
  program = std::make_unique<Program>(
      llm::compile(g, results, {.threads = s.threads, .precision = s.precision}, s.compile), layout);
  arena = std::make_unique<Arena>(program->arena_bytes(), device);
  program->bind(*arena);
  Staging staging(*arena, layout);
  for (const Parameter& p : parameter_table(config))
    for (const std::string& name : {p.name, master_of(p.name)})
      if (layout.has(name)) initialise(team, p, 7, staging.room(name, p.shape.elements()));
}

void Trainer::prepare(Program& to, int64_t step, int64_t micro_step) const {
  const Random random(3, static_cast<uint64_t>(step));
  const int64_t count = graph.graph.shape(graph.tokens).elements();
  const auto vocabulary = static_cast<uint64_t>(graph.graph.shape(logits).last());
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<uint64_t>(micro_step * count + i);
    to.data<int32_t>(graph.tokens)[i] = static_cast<int32_t>(random.bits(2 * at) % vocabulary);
    to.data<int32_t>(graph.targets)[i] = static_cast<int32_t>(random.bits(2 * at + 1) % vocabulary);
    to.data(graph.loss_weights)[i] = 1.0f / (kBatch * kTokens);
  }
  to.step = {.learning_rate = 1e-2f, .step = step, .micro_step = micro_step};
}

void Trainer::run(int64_t step, Phase last, int64_t micro_step) {
  prepare(*program, step, micro_step);
  program->run(up_to(last));
}

Snapshot Trainer::snapshot() const {
  Snapshot all{{"losses", words_of(*program, graph.losses)}, {"norm", words_of(*program, graph.gradient_norm)}};
  const Graph& g = program->graph();
  for (size_t i = 0; i < g.tensors.size(); ++i)
    if (is_persistent(g.tensors[i].role) && g.tensors[i].alias == kNone)
      all[g.tensors[i].name] = words_of(*program, static_cast<TensorId>(i));
  return all;
}

Snapshot Trainer::after_steps(int steps) {
  for (int i = 0; i < steps; ++i) run(i, Phase::optimizer);
  return snapshot();
}

}  // namespace llm::reference
