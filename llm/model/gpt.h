// The GPT, described once: from a config to the graph of its forward pass, and from that the graphs that run. `dtype` is that
// of parameters and activations, fp32 or bf16.
#pragma once
#include <vector>

#include "llm/graph/graph.h"
#include "llm/model/config.h"
#include "llm/model/optimizer.h"
#include "llm/model/parameters.h"

namespace llm {

// What a training run may add to the model's forward pass, which a trained model does without, and how it steps.
struct RecipeOptions {
  double z_loss = 0;   // the weight of log(sum(exp(logits)))^2 in the losses (Chowdhery et al. 2022, "PaLM")
  double dropout = 0;  // of the embeddings and of what each block's halves add (Radford et al. 2019); not of attention
  int32_t end_of_text = -1;  // the token between documents across which there is no attention; -1: all is one
  Parametrization parametrization = {};
};

// Forward, backward and optimizer. Inputs: tokens and targets (B, T) int32, loss_weights (B, T): the weight of each
// token's loss in the step's mean (1 / tokens of the step, 0 for targets that do not count). Results: the losses (B, T) of
// the micro-step, loss (1), their weighted sum over the micro-steps so far, the gradients' norm (1), and the guarded norm (1),
// which is not finite when the step was left out.
struct TrainingGraph {
  Graph graph;
  TensorId tokens, targets, loss_weights, losses, loss, gradient_norm, guarded_norm;
  std::vector<TensorId> results() const { return {losses, loss, gradient_norm, guarded_norm}; }
};
TrainingGraph build_training_graph(const ModelConfig& config, int64_t batch, int64_t tokens,
                                   const OptimizerOptions& options, DType dtype = DType::fp32,
                                   const RecipeOptions& recipe = {});

// Forward alone, to the losses (B, T) of each token; `end_of_text` as in RecipeOptions.
struct EvaluationGraph {
  Graph graph;
  TensorId tokens, targets, losses;
  std::vector<TensorId> results() const { return {losses}; }
};
EvaluationGraph build_evaluation_graph(const ModelConfig& config, int64_t batch, int64_t tokens,
                                       DType dtype = DType::fp32, int32_t end_of_text = -1);

// Forward of `tokens` new tokens onto a key-value cache of `capacity` positions (state tensors "layers.N.keys" and
// "layers.N.values", (B, capacity, K, D)); logits (B, 1, V) of the last one. StepState::position is the cache's fill.
struct GenerationGraph {
  Graph graph;
  TensorId tokens, logits;
  TensorId draws = kNone;  // state (kDraws, 4): token number i of a run leaves its Draw in row i modulo kDraws
  std::vector<TensorId> results() const { return {logits}; }
};
inline constexpr int64_t kDraws = 4;
// Of one sequence the token that comes next may be sampled as well (llm/ops/sampling.h), into the state tensor "next_token".
struct SamplingForm {
  bool sample = false;
  bool greedy = false;       // the temperature will be 0
  bool after_token = false;  // the new token is "next_token", where the run before left it; no input
};
GenerationGraph build_generation_graph(const ModelConfig& config, int64_t batch, int64_t tokens, int64_t capacity,
                                       DType dtype = DType::fp32, const SamplingForm& sampling = {});

// FLOPs that training needs for one token: 6 for each weight of a matrix product (the head's included, embeddings not)
// and the causal attention's two products, forward and backward (Kaplan et al. 2020, counted without the masked half).
// What MFU is measured by; recomputation does not count.
double training_flops_per_token(const ModelConfig& config, int64_t tokens);

}  // namespace llm
