// How the ranks of a run share its model and its steps.
#pragma once
#include <ostream>
#include <string>

#include "llm/cli/options.h"
#include "llm/device/device.h"
#include "llm/model/mesh.h"

namespace llm {

// --ranks and what says how they share the model: `mesh` but for its data-parallel ranks, which are the rest.
Options rank_options(int& ranks, Mesh& mesh, TrainOptions& train);

// The mesh of so many ranks. Throws UsageError where `wanted` does not divide them.
Mesh mesh_of(const Mesh& wanted, int ranks);

// How the ranks there are share the steps of a run, which goes on where it was trained by others.
void share_steps(TrainOptions& options, bool resumes, int64_t context, std::ostream& notes);

// --plan auto: what is not told of how ranks share the steps is chosen. `hardware`: as for take_best_plan().
void plan_steps(TrainOptions& options, const Given& given, const ModelConfig& model, int64_t val_tokens,
                bool is_trained, Device& device, const std::string& hardware, int ranks, std::ostream& notes);

}  // namespace llm
