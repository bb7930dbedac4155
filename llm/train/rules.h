// The recipe: what a run does where it is not told, by rules that are stated, cited and measured (llm/train/README.md).
#pragma once
#include <string>
#include <vector>

#include "llm/train/options.h"

namespace llm {

// One value of a run: its flag, and why it is what it is.
struct Rule {
  std::string name, value, reason;
  bool given = false;  // by the user: no rule was asked
};

// "muon", or "adamw" where steps are so small that making matrices orthogonal would cost more than their gradients.
const char* usual_optimizer(const ModelConfig& model, int64_t step_tokens);

// Whether projections begin at zero: it helps muon, and holds adamw back.
bool usually_zero_projections(const std::string& optimizer);

// Fills in every 0, -1 and "" of `options` and says so of each of them, and of what was given, in the order of their
// dependence. `val_tokens`: of the held-out split. `is_trained`: the run goes on from the weights of a trained model.
std::vector<Rule> apply_rules(TrainOptions& options, const ModelConfig& model, int64_t val_tokens,
                              bool is_trained = false);

}  // namespace llm
