// Fifty steps of training by the kernels, as a program runs them (fused, in shared memory, on threads), against the
// same graph in double precision, naive loops from end to end. The environment variable MODEL_ERRORS prints what is
// measured.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>

#include "test/reference.h"

namespace {

using namespace llm;
using namespace reference;

constexpr int64_t kRows = 2, kSteps = 50;
constexpr float kRate = 3e-3f;

// A new batch each step, of a language that can be learned: a token is followed by 3 times itself plus a number that
// depends on the row.
int32_t token_at(int64_t step, int64_t row, int64_t t) {
  int64_t token = step * 7 + row;
  for (int64_t i = 0; i < t; ++i) token = (3 * token + 1 + row) % 70;
  return static_cast<int32_t>(token % 70);
}

struct Batch {
  std::vector<int32_t> tokens, targets;
  explicit Batch(int64_t step) {
    for (int64_t row = 0; row < kRows; ++row)
      for (int64_t t = 0; t < kTokens; ++t) {
        tokens.push_back(token_at(step, row, t));
        targets.push_back(token_at(step, row, t + 1));
      }
  }
};

constexpr int64_t kCount = kRows * kTokens;

StepState state_of(int64_t step) { return {.learning_rate = kRate, .step = step}; }

std::vector<double> losses_of_kernels(Trainer& trainer) {
  std::vector<double> losses;
  for (int64_t step = 0; step < kSteps; ++step) {
    const Batch batch(step);
    Program& p = *trainer.program;
    std::copy(batch.tokens.begin(), batch.tokens.end(), p.data<int32_t>(trainer.graph.tokens));
    std::copy(batch.targets.begin(), batch.targets.end(), p.data<int32_t>(trainer.graph.targets));
    std::fill_n(p.data(trainer.graph.loss_weights), kCount, 1.0f / kCount);
    p.step = state_of(step);
    p.run(kWholeStep);
    losses.push_back(*p.data(trainer.graph.loss));
  }
  return losses;
}

// The losses in double, from the same initial parameters.
std::vector<double> losses_in_double(const Trainer& start) {
  const Graph& g = start.graph.graph;
  std::vector<Array> values(g.tensors.size());
  const auto set = [&](TensorId id, auto&& from) {
    Array& to = values[static_cast<size_t>(id)] = zeros(g.shape(id));
    std::copy_n(from, to.values.size(), to.values.begin());
  };
  for (size_t i = 0; i < g.tensors.size(); ++i) {
    const auto id = static_cast<TensorId>(i);
    if (g.tensor(id).alias != kNone) continue;
    if (g.tensor(id).role == Role::parameter) set(id, start.program->data(id));
    if (g.tensor(id).role == Role::state) values[i] = zeros(g.shape(id));
  }
  set(start.graph.loss_weights, std::vector<double>(kCount, 1.0 / kCount).begin());
  std::vector<double> losses;
  for (int64_t step = 0; step < kSteps; ++step) {
    const Batch batch(step);
    set(start.graph.tokens, batch.tokens.begin());
    set(start.graph.targets, batch.targets.begin());
    evaluate(g, values, state_of(step));
    losses.push_back(values[static_cast<size_t>(start.graph.loss)][0]);
  }
  return losses;
}

}  // namespace

TEST_CASE("fifty steps of training have the losses of naive loops in double precision") {
  for (const char* architecture : {"gpt2", "modern"}) {
    CAPTURE(architecture);
    ModelConfig config = small_config(architecture);
    config.layers = 2;
    Trainer trainer(config, {.threads = 3, .batch = kRows});
    const std::vector<double> expected = losses_in_double(trainer), losses = losses_of_kernels(trainer);
    double worst = 0;
    for (size_t step = 0; step < losses.size(); ++step) {
      const double error = std::abs(losses[step] - expected[step]) / expected[step];
      worst = std::isfinite(error) ? std::max(worst, error) : HUGE_VAL;
    }
    if (std::getenv("MODEL_ERRORS"))
      std::cout << architecture << " losses of " << kSteps << " steps " << worst << " from " << expected.front()
                << " to " << expected.back() << "\n";
    CHECK(worst <= 1e-5);
    CHECK(expected.back() < 0.8 * expected.front());  // the model did learn
  }
}
