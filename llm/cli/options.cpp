#include "llm/cli/options.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/base/rounding.h"
#include "llm/device/cpu.h"
#include "llm/device/cuda.h"
#include "llm/device/gemm_plans.h"
#include "llm/model/gguf_model.h"
#include "llm/train/rules.h"

namespace llm {

Options DeviceOptions::options() {
  Options all;
  append(
      all,
      {Option("--device", &device, "Where to run: auto, cpu or cuda").with_default().for_a_resume(),
       Option(
           "--dtype", &dtype,
           "Precision of parameters and activations: fp32, bf16, or fp8, which is bf16 with products in 8 bits (bf16 "
           "on a GPU, else fp32)"),
       Option("--tf32", &tf32, "fp32 products on a GPU's tensor cores, whose inputs have 10 bits"),
       Option("!--no-gemm-tuning", &gemm_tuning,
              "On a GPU: take cuBLASLt's first choice instead of timing its algorithms once for each shape"),
       Option("--threads", &threads, "CPU threads; 0: all that this process may use")
           .between(0, 1024)
           .with_default()
           .for_a_resume()},
      "Machine");
  return all;
}

void DeviceOptions::check() const {
  if (device == DeviceKind::cuda && !cuda_is_built_in())
    fail_usage(
        "--device cuda: this binary was built without the CUDA Toolkit; build it with nvcc, or use --device cpu");
  if (device == DeviceKind::cuda && count_cuda_devices() == 0)
    fail_usage("--device cuda: ", describe_cuda_devices(), "; use --device cpu");
  if (tf32 && !on_cuda()) fail_usage("--tf32 is for GPUs; leave it out, or use --device cuda");
  if (tf32 && precision() != Precision::fp32) fail_usage("--tf32 is for --dtype fp32");
}

bool DeviceOptions::on_cuda() const {
  return device ? device == DeviceKind::cuda : cuda_is_built_in() && count_cuda_devices() > 0;
}

Precision DeviceOptions::precision() const { return dtype.value_or(on_cuda() ? Precision::bf16 : Precision::fp32); }

namespace {

// Which algorithms were found fastest is kept, so that later runs on this machine have the same bits; empty: nowhere to.
std::string tuning_file(const CudaProperties& device) {
  const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
  if (!(cache && *cache) && !(home && *home)) return "";
  const std::string directory = cache && *cache ? concat(cache, "/train_gpt") : concat(home, "/.cache/train_gpt");
  std::string name = device.name;
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '-';
  make_directories(directory);
  return directory + "/gemm-" + name + ".txt";
}

}  // namespace

OpenedMachine::OpenedMachine(const DeviceOptions& options, int local, int locals)
    : threads_(options.threads, locals), precision_(options.precision()) {
  if (!options.on_cuda()) {
    device_ = std::make_unique<CpuDevice>(threads_);
    return;
  }
  auto cuda = std::make_unique<CudaDevice>(threads_, local);
  cuda->allow_tf32 = options.tf32;
  if (const std::string file = options.gemm_tuning ? tuning_file(cuda->properties()) : ""; !file.empty()) {
    cuda->gemm_plans()->remember(file);
    cuda->gemm_plans()->tune(true);
  }
  constexpr int kFirstWithFp8 = 89;  // Ada; Hopper is 90
  if (const CudaProperties& p = cuda->properties();
      precision_ == Precision::fp8 && p.compute_capability < kFirstWithFp8)
    fail_usage("--dtype fp8 needs a GPU of compute capability 8.9 or later, ", p.name, " has ",
               p.compute_capability / 10, ".", p.compute_capability % 10, "; use --dtype bf16");
  device_ = std::move(cuda);
}

Options WeightOptions::options() {
  return {Option(
      "--weights", &weights,
      "how the matrices lie in memory: fp32, bf16, or in blocks of 32 with a scale int8 (GGUF's Q8_0) or int4 "
      "(Q4_0); w8a8, w4a8: as int8, int4, and products round activations to 8 bits, too, which is faster; on the "
      "CPU, which computes in fp32 otherwise (as --dtype)")};
}

Options WeightOptions::cache_options() {
  return {
      Option("--cache", &cache,
             "how keys and values lie in memory: fp32, bf16, or in 8 bits int8; on the CPU (as the activations; bf16 "
             "with --weights of fewer bits)")};
}

Target WeightOptions::target(Target target, const DeviceOptions& device) const {
  const std::optional<DType> reduced = type(device);
  if (reduced) target.cache = DType::bf16;
  if (!device.on_cuda()) target.weights = reduced.value_or(dtype_of(device.precision()));
  if (!cache) return target;
  if (device.on_cuda())
    fail_usage("--cache ", name_of(*cache), " is for CPUs; use --device cpu, or --dtype for the GPU's keys and values");
  target.cache = *cache == CacheType::int8 ? DType::int8 : *cache == CacheType::bf16 ? DType::bf16 : DType::fp32;
  return target;
}

std::optional<DType> WeightOptions::type(const DeviceOptions& device) const {
  if (!weights) return {};
  const char* name = name_of(*weights);
  if (device.on_cuda())
    fail_usage("--weights ", name, " is for CPUs; use --device cpu, or --dtype fp32 or bf16 for the GPU's weights");
  if (device.precision() != Precision::fp32)
    fail_usage("--weights ", name, " goes with activations in fp32; leave --dtype ", name_of(device.precision()),
               " out");
  switch (*weights) {
    case WeightType::bf16: return DType::bf16;
    case WeightType::int8: return DType::int8;
    case WeightType::int4: return DType::int4;
    case WeightType::w8a8: return DType::w8a8;
    case WeightType::w4a8: return DType::w4a8;
    case WeightType::fp32: break;
  }
  return {};
}

std::optional<DType> WeightOptions::type_held(const DeviceOptions& device) const {
  const std::optional<DType> asked = type(device);
  return asked && rounds_activations(*asked) ? asked : std::nullopt;
}

Options ModelOptions::options(const char* named) {
  std::string known;
  for (const Preset& p : presets())
    known += concat(known.empty() ? "" : ", ", p.name, *p.also ? concat(" (", p.also, ")") : std::string());
  const auto dimension = [](const char* flag, int64_t& value, const char* help) {
    return Option(flag, &value, help).between(1, 1 << 24);
  };
  Options all = {Option(named, &preset, "A preset: " + known)};
  append(all,
         {Option("--architecture", &architecture, "modern, gpt2, llama or qwen3: a bundle of the switches below"),
          dimension("--depth", depth, "The one dial: so many layers, and channels, heads and context to go with them"),
          dimension("--layers", layers, "Transformer blocks"), dimension("--heads", heads, "Query heads"),
          dimension("--kv-heads", kv_heads, "Key-value heads; fewer than --heads is grouped-query attention"),
          dimension("--channels", channels, "Width of the residual stream"),
          dimension("--head-size", head_size, "Channels of a head (usually channels / heads)"),
          dimension("--hidden", hidden, "Width of the MLP (usually 4 x channels, 8/3 x where it is gated)"),
          dimension("--context", context, "Longest sequence, in tokens"),
          dimension("--vocabulary", vocabulary, "Tokens of the embedding and the head (the preset's, or the data's)"),
          Option("--norm", &norm, "layernorm or rmsnorm"), Option("--positions", &positions, "learned or rope"),
          Option("--activation", &activation, "gelu, relu2, swiglu or geglu"),
          Option("--qk-norm", &qk_norm, "on or off: RMSNorm of query and key heads"),
          Option("--bias", &bias, "on or off: biases in the linear layers"),
          Option("--tied-head", &tied_head, "on or off: the head shares the token embedding"),
          Option("--logit-softcap", &logit_softcap, "Logits are cap tanh(logit / cap), e.g. 30; 0: as they are")},
         "Model");
  append(all,
         {dimension("--experts", experts, "A mixture of so many experts in the place of each block's MLP"),
          dimension("--experts-per-token", experts_per_token, "How many of them each token goes to (2)"),
          dimension("--expert-hidden", expert_hidden, "Width of an expert (the MLP's divided by --experts-per-token)"),
          Option("--shared-expert-hidden", &shared_expert_hidden,
                 "Width of an expert that every token goes to besides; 0: none")
              .between(0, 1 << 24),
          Option("--expert-balance", &expert_balance,
                 "What keeps the experts evenly used: a loss, or a bias on their scores (loss)")},
         "Experts");
  return all;
}

bool ModelOptions::names_directory() const {
  std::error_code none;
  return std::filesystem::is_directory(preset, none) || is_gguf(preset);
}

ModelConfig ModelOptions::resolve(int64_t data_vocabulary, const char* otherwise) const {
  if (depth && !preset.empty())
    fail_usage("--depth ", depth, " and the model ", preset, " both say how large; give one");
  if (depth && layers) fail_usage("--depth and --layers both say how many layers; give one");
  const Preset& base = preset_named(preset.empty() ? otherwise : preset);
  ModelConfig c = config_of(base);
  if (depth) set_depth(c, depth);
  if (!base.vocabulary && data_vocabulary) c.vocabulary = data_vocabulary;
  if (vocabulary) c.vocabulary = vocabulary;
  if (architecture) set_architecture(c, *architecture);
  if (norm) c.norm = *norm;
  if (positions) c.positions = *positions;
  if (activation) c.activation = *activation;
  if (qk_norm) c.qk_norm = qk_norm == Switch::on;
  if (bias) c.bias = bias == Switch::on;
  if (tied_head) c.tied_head = tied_head == Switch::on;

  if (logit_softcap != 0) c.logit_softcap = logit_softcap;
  if (layers) c.layers = layers;
  if (context) c.context = context;
  if (channels || heads) {
    const int64_t wide = channels ? channels : c.channels;
    // Without --heads: heads of the preset's size, as many as fit.
    const int64_t count = heads ? heads : std::max<int64_t>(1, wide / (head_size ? head_size : c.head_size));
    if (!head_size && wide % count)
      fail_usage("--channels ", wide, " is not a multiple of --heads ", count, "; or give --head-size");
    c.channels = wide;
    c.heads = c.kv_heads = count;
    c.head_size = wide / count;
  }
  if (head_size) c.head_size = head_size;
  if (kv_heads) c.kv_heads = kv_heads;
  if (hidden) {
    c.hidden = hidden;
  } else if (channels || heads || activation || architecture || depth) {
    c.hidden = usual_hidden(c.channels, c.activation);
  }
  take_experts(c);
  c.check();
  return c;
}

void ModelOptions::take_experts(ModelConfig& c) const {
  if (!experts) {
    if (experts_per_token || expert_hidden || shared_expert_hidden || expert_balance)
      fail_usage("--experts-per-token, --expert-hidden, --shared-expert-hidden and --expert-balance go with --experts");
    return;
  }
  if (hidden) fail_usage("--hidden is the width of an MLP; with --experts give --expert-hidden");
  c.experts = experts, c.shared_hidden = shared_expert_hidden;
  c.experts_per_token = experts_per_token ? experts_per_token : 2;
  c.router_bias = expert_balance == ExpertBalance::bias;
  // As many active weights as the MLP would have.
  c.hidden = expert_hidden ? expert_hidden : round_up(ceil_div(c.hidden, c.experts_per_token), 32);
}

void complete_recipe(TrainOptions& o, int64_t& batch, const ModelConfig& config) {
  if (!batch) batch = std::max<int64_t>(1, 1024 / config.context);
  if (!o.optimizer) o.optimizer = usual_optimizer(config, config.context, batch * config.context);
  if (!o.zero_projections) o.zero_projections = usually_zero_projections(*o.optimizer);
  complete_routers(o, config);
}

RecipeOptions recipe_without_data(const TrainOptions& o, const ModelConfig& config) {
  return recipe_of(o, static_cast<int32_t>(config.vocabulary - 1));
}

Option trained_model(std::string& path) {
  return Option(
             "RUN|CHECKPOINT", &path,
             "a run (its checkpoint with the lowest validation loss; the newest where none was measured), one of its "
             "checkpoints, a Hugging Face directory, or a GGUF file")
      .needed();
}

}  // namespace llm
