// Flags that several subcommands share, with the checks that go with them.
#pragma once
#include <memory>
#include <string>

#include "llm/base/threads.h"
#include "llm/cli/option.h"
#include "llm/graph/program.h"
#include "llm/model/config.h"
#include "llm/train/options.h"

namespace llm {

// --device, --dtype, --tf32, --no-gemm-tuning, --threads
struct DeviceOptions {
  std::string device = "auto", dtype = "auto";
  bool tf32 = false, gemm_tuning = true;
  int threads = 0;  // 0: all that this process may use

  Options options();
  void check_names() const;  // throws UsageError for a --device or --dtype that there is not
  // Throws UsageError for what this build or machine cannot do, naming the flag that would; never falls back.
  void check() const;
  bool on_cuda() const;         // what `device` means here
  Precision precision() const;  // what `dtype` means there
};

// The threads and the device that the options name.
class OpenedMachine {
 public:
  explicit OpenedMachine(const DeviceOptions& options);
  ThreadTeam& threads() { return threads_; }
  Device& device() { return *device_; }
  Precision precision() const { return precision_; }
  Target target() { return target_on(*device_, precision_); }

 private:
  ThreadTeam threads_;
  std::unique_ptr<Device> device_;
  Precision precision_;
};

// [MODEL] and the flags for dimensions and switches. What is not given comes from the preset or the defaults.
struct ModelOptions {
  std::string preset, architecture, norm, positions, activation;
  int64_t depth = 0;  // the one dial: layers, and what goes with them
  int64_t layers = 0, heads = 0, kv_heads = 0, channels = 0, head_size = 0, hidden = 0, context = 0, vocabulary = 0;
  std::string qk_norm, bias, tied_head;  // "on", "off" or empty: as the architecture has it
  double logit_softcap = 0;

  // `named`: what the positional argument may be, for --help ("MODEL" or "MODEL|RUN").
  Options options(const char* named = "MODEL");
  bool names_preset() const;
  // The config, with `vocabulary` unless a preset or flag fixes one, and `otherwise` the preset when none is named.
  ModelConfig resolve(int64_t data_vocabulary, const char* otherwise) const;
};

// What decides which step a run makes, for the commands that make, show or time one: --optimizer, --parametrization,
// --zero-projections, --dropout, --document-mask, --z-loss.
Options recipe_options(TrainOptions& options);
inline constexpr const char* kRecipeFlags[] = {"--optimizer", "--parametrization", "--zero-projections",
                                               "--dropout",   "--document-mask",   "--z-loss"};
// Throws UsageError for values that no range check sees.
void check_recipe(const TrainOptions& options);
// What was not said of a step: `batch` 0 becomes about 1024 tokens, and the optimizer the usual one for that.
void complete_recipe(TrainOptions& options, int64_t& batch, const ModelConfig& config);
// For a graph without data: any token may be the one that ends a text.
RecipeOptions recipe_without_data(const TrainOptions& options, const ModelConfig& config);

// The positional RUN|CHECKPOINT: what LoadedModel opens.
Option trained_model(std::string& path);

}  // namespace llm
