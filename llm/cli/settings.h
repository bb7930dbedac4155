// The settings of a training run: the rows of its options, and the files that keep them (RUN/config.json, and trainer.json in
// each checkpoint).
#pragma once
#include <string>

#include "llm/checkpoint/checkpoint.h"
#include "llm/cli/option.h"
#include "llm/model/config.h"
#include "llm/train/options.h"

namespace llm {

// What a run can be told of itself, beside its model and its machine.
Options run_options(TrainOptions& options);
// Those of them that decide which step it makes, for the commands that make, show or time one.
Options recipe_options(TrainOptions& options);

// The value of an option as a command line has it.
std::string text_of(const Option& option);

// The settings as JSON: each option by its flag's name with _ for -, and for people the model.
std::string settings_json(TrainOptions options, const ModelConfig& model);
// Throws Error with `where` for text that holds other settings, or none.
TrainOptions parse_settings(const std::string& json, const std::string& where);
// Of the run that a checkpoint belongs to. Throws Error where it has no trainer state.
TrainOptions settings_of(const CheckpointInfo& checkpoint);

// Throws UsageError that `flag` was given with another value than the run's, which cannot change.
[[noreturn]] void fail_to_change(const std::string& flag, const std::string& run);
// The settings with those of `given` that the command line gave. Throws UsageError, which names the run, for another value of
// one that a resumed run cannot change.
TrainOptions resumed_settings(TrainOptions settings, TrainOptions given, const Given& flags);

}  // namespace llm
