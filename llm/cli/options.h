// Flags that several subcommands share, with the checks that go with them.
#pragma once
#include <memory>
#include <string>

#include "llm/base/threads.h"
#include "llm/cli/settings.h"
#include "llm/graph/program.h"
#include "llm/model/config.h"

namespace llm {

// --device, --dtype, --tf32, --no-gemm-tuning, --threads
enum class DeviceKind { cpu, cuda };
template <>
inline constexpr std::array kNames<DeviceKind> = {"cpu", "cuda"};

struct DeviceOptions {
  std::optional<DeviceKind> device;  // none: the GPU where there is one
  std::optional<Precision> dtype;    // none: as the device does it best
  bool tf32 = false, gemm_tuning = true;
  int threads = 0;  // 0: all that this process may use

  Options options();
  // Throws UsageError for what this build or machine cannot do, naming the flag that would; never falls back.
  void check() const;
  bool on_cuda() const;         // what `device` means here
  Precision precision() const;  // what `dtype` means there
};

// The threads and the device that the options name.
class OpenedMachine {
 public:
  // Those of a rank, which is number `local` of the `locals` ranks on this host.
  explicit OpenedMachine(const DeviceOptions& options, int local = 0, int locals = 1);
  ThreadTeam& threads() { return threads_; }
  Device& device() { return *device_; }
  Precision precision() const { return precision_; }
  Target target() { return target_on(*device_, precision_); }

 private:
  ThreadTeam threads_;
  std::unique_ptr<Device> device_;
  Precision precision_;
};

// --weights and --cache: how the matrices of a model, and keys and values, lie in memory for inference.
enum class WeightType { fp32, bf16, int8, int4, w8a8, w4a8 };
template <>
inline constexpr std::array kNames<WeightType> = {"fp32", "bf16", "int8", "int4", "w8a8", "w4a8"};

enum class CacheType { fp32, bf16, int8 };
template <>
inline constexpr std::array kNames<CacheType> = {"fp32", "bf16", "int8"};

struct WeightOptions {
  std::optional<WeightType> weights;  // none: as the activations
  std::optional<CacheType> cache;     // none: bf16 where the weights are reduced, else as the activations

  Options options();  // --weights
  Options cache_options();
  // What the options ask for. Throws UsageError as type() does.
  Target target(Target target, const DeviceOptions& device) const;
  // None where the matrices have the type of the activations. Throws UsageError for what the device cannot do.
  std::optional<DType> type(const DeviceOptions& device) const;
  // For an evaluation, which computes with fp32 weights that were rounded wherever that gives the same: the type in which the
  // matrices must be held, for products that round activations, too; else none.
  std::optional<DType> type_held(const DeviceOptions& device) const;
};

enum class Switch { on, off };
template <>
inline constexpr std::array kNames<Switch> = {"on", "off"};

// How the choices of experts are kept even: by a loss (Fedus et al. 2022), or by a bias on the scores (Wang et al. 2024).
enum class ExpertBalance { loss, bias };
template <>
inline constexpr std::array kNames<ExpertBalance> = {"loss", "bias"};

// [MODEL] and the flags for dimensions and switches. What is not given comes from the preset or the defaults.
struct ModelOptions {
  std::string preset;
  std::optional<Architecture> architecture;
  std::optional<Norm> norm;
  std::optional<Positions> positions;
  std::optional<Activation> activation;
  int64_t depth = 0;  // the one dial: layers, and what goes with them
  int64_t layers = 0, heads = 0, kv_heads = 0, channels = 0, head_size = 0, hidden = 0, context = 0, vocabulary = 0;
  int64_t experts = 0, experts_per_token = 0, expert_hidden = 0, shared_expert_hidden = 0;
  std::optional<ExpertBalance> expert_balance;
  std::optional<Switch> qk_norm, bias, tied_head;  // none: as the architecture has it
  double logit_softcap = 0;

  // `named`: what the positional argument may be, for --help ("MODEL" or "MODEL|RUN").
  Options options(const char* named = "MODEL");
  bool names_directory() const;  // of a trained model, instead of a preset
  // The config, with `vocabulary` unless a preset or flag fixes one, and `otherwise` the preset when none is named.
  ModelConfig resolve(int64_t data_vocabulary, const char* otherwise) const;

 private:
  void take_experts(ModelConfig& config) const;
};

// What was not said of a step: `batch` 0 becomes about 1024 tokens, and the optimizer the usual one for that.
void complete_recipe(TrainOptions& options, int64_t& batch, const ModelConfig& config);
// For a graph without data: any token may be the one that ends a text.
RecipeOptions recipe_without_data(const TrainOptions& options, const ModelConfig& config);

// The positional RUN|CHECKPOINT: what LoadedModel opens.
Option trained_model(std::string& path);

}  // namespace llm
