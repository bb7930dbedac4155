// What a training run is told, and the rules that fill in what it is not told.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "llm/graph/target.h"
#include "llm/model/gpt.h"
#include "llm/model/optimizer.h"
#include "llm/train/pipeline_schedule.h"
#include "llm/train/schedule.h"

namespace llm {

// How the learning rate of a parameter depends on the model's shape. completep (llm/model/parameters.h): rate and weight decay
// are those of the base model; standard: all the same.
enum class RateScaling { completep, standard };
template <>
inline constexpr std::array kNames<RateScaling> = {"completep", "standard"};

// What lies in the host's memory while it is not used.
enum class Offload { none, optimizer };
template <>
inline constexpr std::array kNames<Offload> = {"none", "optimizer"};

// 0, -1 or none: by rule.
struct TrainOptions {
  std::vector<std::string> data;  // "PATH", or "WEIGHT:PATH" (llm/text/tokenize.h)
  std::string out, text_key;
  double val_fraction = 0.1;
  int64_t context = 0;             // tokens of a training sequence, at most the model's context: that
  int64_t batch = 0;               // sequences a micro-step
  int64_t grad_accum = 0;          // micro-steps a step
  int64_t total_batch_tokens = 0;  // tokens a step, instead of grad_accum
  int64_t steps = 0, tokens = 0;   // length of the run, one or the other
  std::optional<OptimizerKind> optimizer;
  RateScaling parametrization = RateScaling::completep;
  double lr = 0, beta1 = 0.9, beta2 = 0, epsilon = 1e-8, weight_decay = -1, grad_clip = 1.0;
  double guard_deviations = 6;  // a step that sticks out by more is left out (step_guard.cpp); 0: none is
  int64_t warmup = -1;
  std::optional<ScheduleKind> schedule;
  uint64_t seed = 1;
  int64_t eval_every = -1, eval_batches = 0, save_every = -1, sample_every = -1;
  int64_t keep_last = 2;
  std::string sample_prompt;
  uint64_t memory_budget = 0;
  std::optional<bool> zero_projections;            // blocks begin as the identity; none: by rule
  bool document_mask = false;                      // attention stays within a document, in evaluations as well
  double dropout = 0;                              // in training alone
  double balance_weight = -1, router_z_loss = -1;  // of the routers of experts (RecipeOptions)
  double z_loss = 0;  // its weight in the training loss, which is logged with it; evaluations are without
  Precision dtype = Precision::fp32;
  int64_t virtual_ranks = 0;  // who share a step's samples, on however many ranks; 0: as many as ranks
  Mesh mesh;                  // of the ranks there are; not part of the run
  ContextExchange context_exchange = ContextExchange::gather;
  PipelineKind pipeline = PipelineKind::one_forward_one_backward;
  int64_t chunks = 1;  // of layers, that each stage of a pipeline has
  int64_t zero = 1;    // what the ranks divide among themselves (llm/model/distribute.h)
  Offload offload = Offload::none;
  int64_t bucket_bytes = 0;          // of gradients that are sent together; 0: those of a block
  int64_t data_tokens = 0;           // of the training split when the run began: the sample order depends on it
  uint64_t data_checksum = 0;        // of the same tokens; 0 in a run from before there was one
  std::string trace;                 // the file that gets a trace of the second step; empty: none
  std::string settings_json = "{}";  // all of these, for the checkpoints: nothing here reads it
};

// The step that such a run makes. `end_of_text`: the data's, which documents are cut at if the run has document masks.
Parametrization parametrization_of(const TrainOptions& options);
OptimizerOptions optimizer_of(const TrainOptions& options);
RecipeOptions recipe_of(const TrainOptions& options, int32_t end_of_text);

}  // namespace llm
