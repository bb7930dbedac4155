// Muon: its step on whole models against a naive one in double precision, and what must not change a bit of it.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "llm/model/gpt.h"
#include "test/reference.h"

namespace {

using namespace llm;
using reference::small_config;
using reference::Snapshot;
using reference::Trainer;

using Values = std::vector<double>;

Values values_of(const Snapshot& snapshot, const std::string& name) {
  const reference::Words& words = snapshot.at(name);
  std::vector<float> floats(words.size());
  std::memcpy(floats.data(), words.data(), words.size() * 4);
  return {floats.begin(), floats.end()};
}

// The orthogonal matrix of one part's step, in double: five steps of the iteration (I a + b A + c A^2) x with A = x
// x^T, always by matrices of the rows' side, with the published coefficients.
Values orthogonal(Values x, int64_t rows, int64_t columns) {
  const double coefficients[5][3] = {{8.156554524902461, -22.48329292557795, 15.878769915207462},
                                     {4.042929935166739, -2.808917465908714, 0.5000178451051316},
                                     {3.8916678022926607, -2.772484153217685, 0.5060648178503393},
                                     {3.285753657755655, -2.3681294933425376, 0.46449024233003106},
                                     {2.3465413258596377, -1.7097828382687081, 0.42323551169305323}};
  const auto times = [](const Values& a, const Values& b, int64_t m, int64_t k, int64_t n) {
    Values c(static_cast<size_t>(m * n));
    for (int64_t i = 0; i < m; ++i)
      for (int64_t l = 0; l < k; ++l)
        for (int64_t j = 0; j < n; ++j)
          c[static_cast<size_t>(i * n + j)] += a[static_cast<size_t>(i * k + l)] * b[static_cast<size_t>(l * n + j)];
    return c;
  };
  double squares = 0;
  for (double v : x) squares += v * v;
  for (double& v : x) v /= 1.02 * std::sqrt(squares);
  for (const auto& [a, b, c] : coefficients) {
    Values transposed(x.size());
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j)
        transposed[static_cast<size_t>(j * rows + i)] = x[static_cast<size_t>(i * columns + j)];
    const Values A = times(x, transposed, rows, columns, rows), A2 = times(A, A, rows, rows, rows);
    Values polynomial(A.size());
    for (size_t i = 0; i < A.size(); ++i) polynomial[i] = b * A[i] + c * A2[i];
    for (int64_t i = 0; i < rows; ++i) polynomial[static_cast<size_t>(i * rows + i)] += a;
    x = times(polynomial, x, rows, rows, columns);
  }
  return x;
}

struct Muon {
  double learning_rate, weight_decay, scale;

  // Returns the parameter after a step, and steps `momentum`, too.
  Values step(const Parameter& p, const Values& parameter, const Values& gradient, Values& momentum) const {
    const int64_t columns = p.shape[1];
    const std::vector<int64_t> parts = p.joined.empty() ? std::vector{p.shape[0]} : p.joined;
    Values result;
    size_t at = 0;
    for (const int64_t rows : parts) {
      Values update;
      for (size_t i = at; i < at + static_cast<size_t>(rows * columns); ++i) {
        momentum[i] = 0.95 * momentum[i] + 0.05 * scale * gradient[i];
        update.push_back(0.95 * momentum[i] + 0.05 * scale * gradient[i]);
      }
      const double size = 0.2 * std::sqrt(static_cast<double>(std::max(rows, columns)));
      for (const double x : orthogonal(update, rows, columns)) {
        result.push_back(parameter[at] * (1 - learning_rate * weight_decay) - learning_rate * size * x);
        ++at;
      }
    }
    return result;
  }
};

Trainer::Settings with_muon() {
  Trainer::Settings settings;
  settings.optimizer.kind = OptimizerKind::muon;
  return settings;
}

}  // namespace

TEST_CASE("optimizer: steps of Muon on a whole model are those of a naive one in double precision") {
  // The rounding of fp32 through five steps of the iteration, relative to the largest value of a step: 2e-5 was the
  // most measured.
  constexpr double kBound = 1e-4;
  for (const char* architecture : {"gpt2", "modern"}) {
    const ModelConfig config = small_config(architecture);
    Trainer trainer(config, with_muon());
    std::map<std::string, Values> momenta;
    for (int step = 0; step < 3; ++step) {
      trainer.run(step, Phase::backward);
      const Snapshot before = trainer.snapshot();
      trainer.run(step, Phase::optimizer);
      const Snapshot after = trainer.snapshot();
      const double norm = values_of(after, "norm")[0];
      const Muon muon{1e-2f, 0.1, std::min(1.0, 1 / (norm + 1e-6))};
      int matrices = 0;
      for (const Parameter& p : parameter_table(config)) {
        const bool is_matrix = p.name.starts_with("layers.") && p.shape.rank() == 2;
        CHECK(after.contains(p.name + ".momentum") == is_matrix);
        CHECK(after.contains(p.name + ".first_moment") != is_matrix);
        if (!is_matrix) continue;
        ++matrices;
        Values& momentum = momenta[p.name];
        momentum.resize(static_cast<size_t>(p.shape.elements()));
        const Values old = values_of(before, p.name);
        Values expected = muon.step(p, old, values_of(before, p.name + ".grad"), momentum);
        Values got = values_of(after, p.name);
        for (size_t i = 0; i < got.size(); ++i) got[i] -= old[i], expected[i] -= old[i];
        CAPTURE(p.name);
        CAPTURE(step);
        CHECK(reference::relative_error(got, expected) <= kBound);
        CHECK(reference::relative_error(values_of(after, p.name + ".momentum"), momentum) <= 1e-5);
      }
      CHECK(matrices == 4 * config.layers);
    }
  }
}

TEST_CASE("optimizer: Muon's steps are orthogonal, part by part") {
  Parameter wide{.name = "wide", .shape = {48, 80}}, tall{.name = "tall", .shape = {90, 32}},
      joined{.name = "joined", .shape = {76, 64}};
  joined.joined = {40, 24, 12};
  std::vector<Parameter> table = {wide, tall, joined};
  Graph g;
  std::vector<TensorId> gradients;
  for (Parameter& p : table) {
    p.group = LearningRateGroup::matrix, p.layer = 0;
    g.add_tensor(p.name, DType::fp32, p.shape, Role::parameter);
    gradients.push_back(g.add_tensor(p.name + ".grad", DType::fp32, p.shape, Role::input));
  }
  OptimizerOptions options;
  options.kind = OptimizerKind::muon;
  const Partition alone = partition_of(table, options.kind, 1);
  const Reduced reduced = add_reduction(g, table, gradients, kNone, {}, alone, table);
  add_optimizer(g, table, reduced.stepped, reduced.norm, kNone, options);
  add_workspaces(g, {.threads = 2});
  reference::Sandbox sandbox(g);
  for (size_t i = 0; i < table.size(); ++i) {
    const int64_t elements = table[i].shape.elements();
    sandbox.fill(gradients[i], reference::random_values(table[i].name, elements, DType::fp32, -1, 1));
    for (const std::string& name : {table[i].name, table[i].name + ".momentum"})
      sandbox.fill(g.find(name), Values(static_cast<size_t>(elements)));
  }
  ThreadTeam team(2);
  sandbox.run(team, {.learning_rate = 1});
  for (const Parameter& p : table) {
    const Values x = sandbox.values(g.find(p.name));
    const int64_t columns = p.shape[1];
    int64_t first = 0;
    for (const int64_t rows : p.joined.empty() ? std::vector{p.shape[0]} : p.joined) {
      const double size = 0.2 * std::sqrt(static_cast<double>(std::max(rows, columns)));
      const bool is_tall = rows > columns;
      const int64_t n = is_tall ? columns : rows, m = is_tall ? rows : columns;
      const auto element = [&](int64_t i, int64_t j) {
        return x[static_cast<size_t>(is_tall ? (first + j) * columns + i : (first + i) * columns + j)] / size;
      };
      for (int64_t a = 0; a < n; ++a)
        for (int64_t b = 0; b < n; ++b) {
          double product = 0;
          for (int64_t j = 0; j < m; ++j) product += element(a, j) * element(b, j);
          CHECK(std::abs(product - (a == b ? 1 : 0)) < 0.2);
        }
      first += rows;
    }
  }
}

TEST_CASE("optimizer: Muon leaves everything as it was when the norm is not finite") {
  const ModelConfig config = small_config("modern");
  Trainer trainer(config, with_muon());
  const Snapshot before = trainer.after_steps(2);
  trainer.run(2, Phase::backward);
  trainer.program->data(trainer.program->graph().find("layers.1.qkv.weight.grad"))[3] = NAN;
  trainer.program->run(Phase::optimizer);
  const Snapshot after = trainer.snapshot();
  for (auto& [name, words] : before)
    if (!name.ends_with(".grad") && name != "loss" && name != "losses" && name != "norm")
      CHECK_MESSAGE(words == after.at(name), name, " differs");
}

TEST_CASE("optimizer: Muon gives the same bits for any number of threads and any plan of the memory") {
  const ModelConfig config = small_config("modern");
  const Snapshot expected = Trainer(config, with_muon()).after_steps(3);
  for (int variant = 0; variant < 4; ++variant) {
    Trainer::Settings settings = with_muon();
    if (variant < 2) settings.threads = variant == 0 ? 1 : 3;
    if (variant == 2) settings.compile.share_memory = false;
    if (variant == 3) settings.recompute = {Recompute::block, static_cast<int>(config.layers)};
    const Snapshot got = Trainer(config, settings).after_steps(3);
    CAPTURE(variant);
    for (auto& [name, words] : expected) CHECK_MESSAGE(words == got.at(name), name, " differs");
  }
}
