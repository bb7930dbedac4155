// The recipe: the values of a run that it was not given, by rules that are stated, cited and measured
// (llm/train/README.md).
#pragma once
#include <string>
#include <vector>

#include "llm/train/options.h"

namespace llm {

// One value of a run: its name, and why it is what it is.
struct Rule {
  std::string name, value, reason;
  bool given = false;  // by the user, so that no rule was needed
};

// Muon; AdamW where steps are so small that making matrices orthogonal would cost more than their gradients do.
OptimizerKind usual_optimizer(const ModelConfig& model, int64_t context, int64_t step_tokens);

// The weights of the routers' losses where they are not given; 0 for a model without experts.
void complete_routers(TrainOptions& options, const ModelConfig& model);

// Whether projections begin at zero: that helps Muon and holds AdamW back.
bool usually_zero_projections(OptimizerKind optimizer);

// The batches that the last evaluation of a run may take. A forward pass costs a third of a step, so that many take a
// quarter of the time that the run has trained. Counted, not timed: a run has the same losses on every machine.
int64_t last_evaluation_batches(const TrainOptions& options);

// Fills in every value of `options` that is 0, -1 or none and has a rule. Returns all values, filled in or given, with
// their reasons, in the order in which they depend on each other. `val_tokens`: the tokens of the held-out split.
// `is_trained`: the run starts from the weights of a trained model. Throws UsageError where given values contradict
// each other.
std::vector<Rule> apply_rules(TrainOptions& options, const ModelConfig& model, int64_t val_tokens,
                              bool is_trained = false);

}  // namespace llm
