// The GPT, described once: from a config to the graph of its forward pass, and from that to the graphs that run.
// `dtype` is the type of parameters and activations, fp32 or bf16.
#pragma once
#include <vector>

#include "llm/graph/graph.h"
#include "llm/model/config.h"
#include "llm/model/distribute.h"
#include "llm/model/optimizer.h"
#include "llm/model/parameters.h"

namespace llm {

// What a training run may add to the model's forward pass, and by which parametrization it begins and steps. Generation
// needs none of it, evaluation `end_of_text` at most.
struct RecipeOptions {
  double z_loss = 0;         // the weight of log(sum(exp(logits)))^2 in the losses (Chowdhery et al. 2022, "PaLM")
  double dropout = 0;        // of the embeddings and of what attention and MLP add to the stream (Radford et al. 2019)
  int32_t end_of_text = -1;  // the token between documents, across which there is no attention; -1: none
  // Of the routers of experts (llm/ops/router_loss.cpp): the weights of the loss that keeps their choices even, and of the
  // squared logarithm of their softmax's sum. Both losses are in no other.
  double balance_weight = 0, router_z_loss = 0;
  Parametrization parametrization = {};
};

// Forward, backward and optimizer. Inputs: tokens and targets (B, T) int32; loss_weights (B, T), the weight of each
// token's loss in the step's mean (1 / tokens of the step; 0 for targets that do not count). Results: losses (B, T) of
// the micro-step in nats; loss (1), the sum of weights times losses over the micro-steps so far; gradient_norm (1);
// guarded_norm (1), which is not finite when the step was skipped.
struct TrainingGraph {
  Graph graph;
  TensorId tokens, targets, loss_weights, losses, loss, gradient_norm, guarded_norm;
  std::vector<TensorId> gradients;  // in the order of the parameter table
  // Of each layer with experts, E + kRouterSums numbers (llm/ops/router_sums.h), added up over the micro-steps.
  std::vector<TensorId> router_statistics;
  std::vector<TensorId> results() const { return {losses, loss, gradient_norm, guarded_norm}; }
};
// The names of a layer's router statistics and, where it has any, losses (B, T) in forward graphs.
std::string router_statistics_of(int64_t layer);
std::string router_loss_of(int64_t layer);
// The forward pass of a rank, to the losses and their mean: tensors "tokens", "targets", "loss_weights", "losses", "loss".
Graph build_forward(const ModelConfig& config, int64_t batch, int64_t tokens, DType dtype, const RecipeOptions& recipe,
                    const DataParallel& parallel);
// Appends a step's end, to a graph that has the gradients and the loss of its micro-steps: the sums over the ranks, and the
// steps of the parameters. `table`: this rank's parameters, in the order of the gradients; `all`: those of all stages.
void add_step_end(TrainingGraph& training, const std::vector<Parameter>& table, const std::vector<Parameter>& all,
                  const OptimizerOptions& options, const DataParallel& parallel);
TrainingGraph build_training_graph(const ModelConfig& config, int64_t batch, int64_t tokens,
                                   const OptimizerOptions& options, DType dtype = DType::fp32,
                                   const RecipeOptions& recipe = {}, const DataParallel& parallel = {});

// The forward pass alone, to the losses (B, T) of all tokens in nats; `end_of_text` as in RecipeOptions. `weights`: the type of
// the matrices, where they are packed panels (Target::weights).
struct EvaluationGraph {
  Graph graph;
  TensorId tokens, targets, losses;
  std::vector<TensorId> results() const { return {losses}; }
};
EvaluationGraph build_evaluation_graph(const ModelConfig& config, int64_t batch, int64_t tokens,
                                       DType dtype = DType::fp32, int32_t end_of_text = -1,
                                       std::optional<DType> weights = {});

// The parts of a step of inference (llm/infer/engine.h). Keys and values lie in state tensors "layers.N.key_blocks" and
// "layers.N.value_blocks", (blocks, K, block, D); which block holds which positions of the sequence in a slot stands in
// the state tensor "block_tables" (sequences, context / block, rounded up) int32. All products are row-invariant.
// `weights`: the type of the matrices, where they are packed panels (Target::weights).
struct PagedMemory {
  int64_t blocks, block, sequences;
  std::optional<DType> type = {};  // of keys and values, where that is not `dtype`
};
// The blocks of layers for R = `rows` new tokens of any sequences. Inputs: rows (3, R) int32: the tokens, their positions
// (below 0: a row that stands for no token), and their slots; of a model with longrope a fourth row, whether the token's
// text is longer than the original context (0 or 1). Result: hidden (1, R, C), for the head; `with_head`: the
// logits (1, R, V) of all rows.
struct PagedGraph {
  Graph graph;
  TensorId rows, hidden, logits = kNone;
  std::vector<TensorId> results() const { return {logits == kNone ? hidden : logits}; }
};
PagedGraph build_paged_graph(const ModelConfig& config, int64_t rows, const PagedMemory& memory,
                             DType dtype = DType::fp32, bool with_head = false, std::optional<DType> weights = {});
// From hidden (1, R, C) of any `rows` tokens to their logits (1, R, V), in fp32 where they have a soft-cap. With `sample`
// also to the tokens that follow, of those below `limit` (0: all): sampling (R, 12) int32 and draws (R, 4) int32 as the op
// `sample` has them.
struct HeadGraph {
  Graph graph;
  TensorId hidden, logits, sampling = kNone, draws = kNone;
  std::vector<TensorId> results() const {
    return draws == kNone ? std::vector<TensorId>{logits} : std::vector<TensorId>{logits, draws};
  }
};
HeadGraph build_head_graph(const ModelConfig& config, int64_t rows, DType dtype = DType::fp32, bool sample = false,
                           int64_t limit = 0, std::optional<DType> weights = {});

// FLOPs that training needs for one token of a sequence of `tokens`: 6 for each weight of a matrix product (the head's
// included, embeddings not), and forward and backward of attention's two products, without the masked half (Kaplan et
// al. 2020). Of experts, those that one token has. MFU is measured by this number; recomputation does not count.
double training_flops_per_token(const ModelConfig& config, int64_t tokens);

}  // namespace llm
