// What a training run is told, and the rules that fill in what it is not told.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "llm/checkpoint/checkpoint.h"
#include "llm/model/gpt.h"

namespace llm {

// Kept in RUN/config.json and in every checkpoint; the names there are the flags'. 0 or "" or -1: by rule.
struct TrainOptions {
  std::string data, out;
  double val_fraction = 0.1;
  int64_t batch = 0;               // sequences a micro-step
  int64_t grad_accum = 0;          // micro-steps a step
  int64_t total_batch_tokens = 0;  // tokens a step, instead of grad_accum
  int64_t steps = 0, tokens = 0;   // length of the run, one or the other
  std::string optimizer;           // adamw or muon
  // How the rate of a parameter depends on the model's shape: "completep" (llm/model/parameters.h), in which lr and
  // weight_decay are those of the base model, or "standard", all the same.
  std::string parametrization = "completep";
  double lr = 0, beta1 = 0.9, beta2 = 0, epsilon = 1e-8, weight_decay = -1, grad_clip = 1.0;
  double guard_deviations = 6;  // a step that sticks out by more is left out (step_guard.cpp); 0: none is
  int64_t warmup = -1;
  std::string schedule;
  uint64_t seed = 1;
  int64_t eval_every = -1, eval_batches = 0, save_every = -1, sample_every = -1;
  int64_t keep_last = 2;
  std::string sample_prompt;
  uint64_t memory_budget = 0;
  std::optional<bool> zero_projections;  // blocks begin as the identity; none: by rule
  bool document_mask = false;            // attention stays within a document, in evaluations as well
  double dropout = 0;                    // in training alone
  double z_loss = 0;           // its weight in the training loss, which is logged with it; evaluations are without
  std::string dtype = "fp32";  // of parameters and activations: fp32, bf16, or fp8 (bf16 with products in 8 bits)
  int64_t data_tokens = 0;     // of the training split when the run began: the sample order depends on it

  std::string json(const ModelConfig& model) const;
  // Reads what json() wrote. Throws Error with `where` in the message.
  static TrainOptions parse(const std::string& json, const std::string& where);
};

// The settings of the run that a checkpoint belongs to. Throws Error where it has no trainer state.
TrainOptions settings_of(const CheckpointInfo& checkpoint);

// The step that such a run makes. `end_of_text`: the data's, which documents are cut at if the run has document masks.
Parametrization parametrization_of(const TrainOptions& options);
OptimizerOptions optimizer_of(const TrainOptions& options);
RecipeOptions recipe_of(const TrainOptions& options, int32_t end_of_text);

}  // namespace llm
