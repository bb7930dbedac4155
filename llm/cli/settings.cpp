#include "llm/cli/settings.h"

#include <algorithm>

#include "llm/base/error.h"
#include "llm/base/json.h"

namespace llm {
namespace {

std::string key_of(const Option& option) {
  if (!option.key.empty()) return option.key;
  std::string key = option.name.substr(2, option.name.find(',') - 2);
  std::replace(key.begin(), key.end(), '-', '_');
  return key;
}

Json json_of(const Option& option) {
  return std::visit(
      [](const auto& value) -> Json {
        using Value = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<Value, NamedValue>)
          return value.text();
        else if constexpr (std::is_same_v<Value, MemorySize>)
          return *value.bytes;
        else if constexpr (std::is_same_v<Value, std::vector<std::string>*>)
          return value->size() == 1 ? Json(value->front()) : Json(*value);
        else if constexpr (std::is_same_v<Value, std::optional<bool>*>)
          return value->value_or(false);
        else
          return Json(*value);
      },
      option.value);
}

void set(const Option& option, const Json& json) {
  std::visit(
      [&](const auto& value) {
        using Value = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<Value, NamedValue>) {
          if (const std::string wrong = value.wrong(json.string()); !wrong.empty()) fail(wrong);
          value.set(json.string());
        } else if constexpr (std::is_same_v<Value, MemorySize>) {
          *value.bytes = json.get<uint64_t>();
        } else if constexpr (std::is_same_v<Value, std::optional<bool>*>) {
          *value = json.get<bool>();
        } else if constexpr (std::is_same_v<Value, std::vector<std::string>*>) {
          value->clear();
          for (const Json& item : json.is_string() ? Json::array({json}) : json) value->push_back(item.string());
        } else {
          *value = json.get<std::decay_t<decltype(*value)>>();
        }
      },
      option.value);
}

}  // namespace

void fail_to_change(const std::string& flag, const std::string& run) {
  fail_usage(flag, " belongs to the run in ", run,
             " and cannot change with --resume; start a new run with another --out");
}

Options recipe_options(TrainOptions& o) {
  Options all;
  append(
      all,
      {Option("--optimizer", &o.optimizer,
              "muon for the matrices of the blocks and adamw for the rest, or adamw (muon)"),
       Option("--parametrization", &o.parametrization,
              "completep: initial values and rates such that the best --lr is the same at every size (muP, CompleteP); "
              "standard: one rate for all parameters")
           .with_default()
           .once("\"standard\""),
       Option(
           "--zero-projections,!--no-zero-projections", &o.zero_projections,
           "Projections into the residual stream and an untied head begin at zero (Zhang et al. 2019); with muon the "
           "default")
           .once("false"),
       Option("--dropout", &o.dropout,
              "Part of the embeddings and of each block's additions that is left out in training (GPT-2: 0.1)")
           .between(0, 0.99)
           .with_default()
           .once("0"),
       Option("--document-mask", &o.document_mask,
              "Attention does not cross an end-of-text token, which opens a document")
           .once("false"),
       Option("--z-loss", &o.z_loss, "Weight of log(sum(exp(logits)))^2 in the loss, e.g. 1e-4; 0: none")
           .between(0, 1e3)
           .once("0"),
       Option("--expert-balance-weight", &o.balance_weight,
              "Weight of the loss that keeps experts evenly used (0.01 with --expert-balance loss, else 0)")
           .between(0, 1e3)
           .once("0"),
       Option("--router-z-loss", &o.router_z_loss,
              "Weight of log(sum(exp(logits)))^2 of the routers of experts (0.001); 0: none")
           .between(0, 1e3)
           .once("0")},
      "Recipe");
  return all;
}

Options run_options(TrainOptions& o) {
  Options all = {
      Option("--data", &o.data,
             "Text files (plain, JSON lines, either packed by gzip or zstd), directories of them or of token shards, "
             "shards, quoted globs; several are joined, or mixed by weights: 0.7:DIR1 0.3:DIR2")
          .for_a_resume(),  // the same data, in another place
      Option("--text-key", &o.text_key, "The key of the text in JSON lines (text)").once("\"\""),
      Option("--out", &o.out, "The run's directory (runs/NAME-OF-DATA)").for_a_resume(),
      Option("--train-context", &o.context, "").without_flag().once("0"),  // --context is the model's
      Option("--data-tokens", &o.data_tokens, "").without_flag(),
      Option("--data-checksum", &o.data_checksum, "").without_flag().once("0"),
      Option("--dtype", &o.dtype, "").without_flag().once("\"fp32\"")};
  append(all,
         {Option("--steps", &o.steps, "Optimizer steps (20 tokens a parameter)").at_least(1).for_a_resume(),
          Option("--tokens", &o.tokens, "Tokens to train on, instead of --steps").at_least(1).for_a_resume(),
          Option("--batch", &o.batch, "Sequences a micro-step (about 1024 tokens)").between(1, 65536),
          Option("--grad-accum", &o.grad_accum, "Micro-steps a step").between(1, 1 << 20),
          Option("--total-batch-tokens", &o.total_batch_tokens, "Tokens a step, instead of --grad-accum").at_least(1)},
         "Length");
  append(
      all,
      {Option("--virtual-ranks", &o.virtual_ranks,
              "Equal shares of a step, each with its --batch and --grad-accum; the run has the same bits on any number "
              "of ranks up to this (--ranks)")
           .between(1, 256)
           .once("1"),
       Option(
           "--zero", &o.zero,
           "What ranks divide among themselves: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too (ZeRO)")
           .between(0, 3)
           .with_default()
           .for_a_resume()
           .once("0"),
       Option("--offload", &o.offload,
              "optimizer: its state and the fp32 masters lie in the host's memory, and are copied to the GPU for their "
              "step, some at a time; none")
           .with_default()
           .for_a_resume()
           .once("none"),
       Option("--bucket-bytes", &o.bucket_bytes, "Gradients sent together (those of a block)")
           .at_least(0)
           .for_a_resume()
           .once("0")},
      "Ranks");
  append(all,
         {Option("--lr", &o.lr, "Peak learning rate, of the base model (0.22 / sqrt(steps))").between(1e-12, 1e3),
          Option("--beta1", &o.beta1, "First moment's decay").between(0, 0.9999).with_default(),
          Option("--beta2", &o.beta2, "Second moment's decay (by rule)").between(1e-6, 0.999999),
          Option("--epsilon", &o.epsilon, "Added to the root of the second moment").between(1e-30, 1).with_default(),
          Option("--weight-decay", &o.weight_decay, "Of matrices, times the learning rate (by rule)").between(0, 100),
          Option("--grad-clip", &o.grad_clip, "Largest norm of all gradients together; 0: no limit")
              .between(0, 1e9)
              .with_default(),
          Option("--schedule", &o.schedule, "linear, cosine, wsd or constant; all but the last end at zero (linear)"),
          Option("--warmup", &o.warmup, "Steps of linear warm-up (5 %)").at_least(0),
          Option("--seed", &o.seed, "Of initial weights, sample order and samples").with_default()},
         "Optimizer");
  append(all, recipe_options(o));
  append(
      all,
      {Option("--guard", &o.guard_deviations,
              "Leave out steps whose loss or gradient norm is more standard deviations above the mean of the last 50; "
              "0: only what is not finite")
           .between(0, 1e6)
           .with_default()
           .kept_as("guard_deviations")
           .once("0")},
      "Recipe");
  append(all,
         {Option("--eval-every", &o.eval_every, "Steps between evaluations; 0: none").at_least(0).for_a_resume(),
          Option("--eval-batches", &o.eval_batches,
                 "Batches an evaluation takes (5 % of the time; the last one takes all held-out text within 25 %)")
              .at_least(1)
              .for_a_resume(),
          Option("--val-fraction", &o.val_fraction, "The end of a text file that is held out")
              .between(0, 0.9)
              .with_default(),
          Option("--sample-every", &o.sample_every, "Steps between samples; 0: none").at_least(0).for_a_resume(),
          Option("--sample-prompt", &o.sample_prompt, "What samples begin with (the held-out text's first words)")
              .for_a_resume(),
          Option("--save-every", &o.save_every, "Steps between checkpoints; 0: none").at_least(0).for_a_resume(),
          Option("--keep-last", &o.keep_last, "Checkpoints to keep beside the best; 0: all")
              .between(0, 1 << 20)
              .with_default()
              .for_a_resume()},
         "Watching");
  append(
      all,
      {Option("--memory-budget", MemorySize{&o.memory_budget}, "Recompute activations until the run fits, e.g. 20GiB")
           .for_a_resume()},
      "Machine");
  return all;
}

std::string text_of(const Option& option) {
  const Json value = json_of(option);
  return value.is_string() ? value.string() : value.dump();
}

std::string settings_json(TrainOptions options, const ModelConfig& m) {
  Json j;
  for (const Option& option : run_options(options)) j[key_of(option)] = json_of(option);
  j["model"] = {{"vocabulary", m.vocabulary},
                {"context", m.context},
                {"layers", m.layers},
                {"heads", m.heads},
                {"kv_heads", m.kv_heads},
                {"channels", m.channels},
                {"head_size", m.head_size},
                {"hidden", m.hidden},
                {"norm", name_of(m.norm)},
                {"positions", name_of(m.positions)},
                {"activation", name_of(m.activation)},
                {"qk_norm", m.qk_norm},
                {"bias", m.bias},
                {"tied_head", m.tied_head},
                {"logit_softcap", m.logit_softcap},
                {"parameters", parameter_count(m)}};
  if (m.experts)
    j["model"].update({{"experts", m.experts},
                       {"experts_per_token", m.experts_per_token},
                       {"shared_hidden", m.shared_hidden},
                       {"router_bias", m.router_bias},
                       {"active_parameters", active_parameter_count(m)}});
  return json_text(j);
}

TrainOptions parse_settings(const std::string& json, const std::string& where) {
  TrainOptions o;
  const Json values = parse_json(json, where);
  for (const Option& option : run_options(o)) {
    const std::string key = key_of(option);
    const bool is_there = values.contains(key);
    if (!is_there && !option.before) fail(where, ": not the settings of a run: no \"", key, "\"");
    try {
      set(option, is_there ? values.at(key) : parse_json(*option.before, where));
    } catch (const Error& e) {
      fail(where, ": not the settings of a run: \"", key, "\": ", e.what());
    }
  }
  return o;
}

TrainOptions settings_of(const CheckpointInfo& checkpoint) {
  return parse_settings(read_trainer_state(checkpoint.path).settings_json, checkpoint.path + "/trainer.json");
}

TrainOptions resumed_settings(TrainOptions settings, TrainOptions given, const Given& flags) {
  const Options from = run_options(given), to = run_options(settings);
  for (size_t i = 0; i < from.size(); ++i) {
    const std::string flag = from[i].name.substr(0, from[i].name.find(','));
    if (!from[i].is_flag || !flags.contains(flag)) continue;
    const Json value = json_of(from[i]);
    if (!from[i].may_change && value != json_of(to[i])) fail_to_change(flag, given.out);
    set(to[i], value);
  }
  if (flags.contains("--tokens")) settings.steps = std::max<int64_t>(1, given.tokens / settings.total_batch_tokens);
  settings.tokens = settings.steps * settings.total_batch_tokens;
  return settings;
}

}  // namespace llm
