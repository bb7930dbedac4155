#include "llm/train/options.h"

#include "llm/base/error.h"
#include "llm/base/json.h"
#include "llm/model/parameters.h"

namespace llm {
namespace {

// Calls visit(flag name, field) for each option, so that writing and reading cannot differ.
template <class Options, class Visit>
void each_option(Options& o, Visit&& visit) {
  visit("data", o.data), visit("out", o.out), visit("val_fraction", o.val_fraction);
  visit("batch", o.batch), visit("grad_accum", o.grad_accum), visit("total_batch_tokens", o.total_batch_tokens);
  visit("steps", o.steps), visit("tokens", o.tokens), visit("optimizer", o.optimizer);
  visit("lr", o.lr), visit("beta1", o.beta1), visit("beta2", o.beta2), visit("epsilon", o.epsilon);
  visit("weight_decay", o.weight_decay), visit("grad_clip", o.grad_clip), visit("warmup", o.warmup);
  visit("schedule", o.schedule), visit("seed", o.seed), visit("eval_every", o.eval_every);
  visit("eval_batches", o.eval_batches), visit("save_every", o.save_every), visit("sample_every", o.sample_every);
  visit("keep_last", o.keep_last), visit("sample_prompt", o.sample_prompt), visit("memory_budget", o.memory_budget);
  visit("data_tokens", o.data_tokens), visit("dtype", o.dtype), visit("zero_projections", o.zero_projections);
  visit("z_loss", o.z_loss), visit("guard_deviations", o.guard_deviations);
  visit("document_mask", o.document_mask), visit("dropout", o.dropout);
  visit("parametrization", o.parametrization);
}

bool is_newer(std::string_view name) {
  for (const char* newer :
       {"dtype", "zero_projections", "z_loss", "guard_deviations", "document_mask", "dropout", "parametrization"})
    if (name == newer) return true;
  return false;
}

}  // namespace

std::string TrainOptions::json(const ModelConfig& m) const {
  Json j;
  each_option(*this, [&](const char* name, const auto& value) {
    if constexpr (std::is_same_v<decltype(value), const std::optional<bool>&>)
      j[name] = value.value_or(false);
    else
      j[name] = Json(value);
  });
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
  return json_text(j);
}

TrainOptions TrainOptions::parse(const std::string& text, const std::string& where) {
  TrainOptions o;
  o.guard_deviations = 0, o.zero_projections = false, o.parametrization = "standard";
  try {
    const Json j = parse_json(text, where);
    each_option(o, [&](const char* name, auto& value) {
      // In runs from before there was a choice it is as it was then.
      if (is_newer(name) && !j.contains(name)) return;
      if constexpr (std::is_same_v<decltype(value), std::optional<bool>&>)
        value = j.at(name).template get<bool>();
      else
        value = j.at(name).template get<std::remove_reference_t<decltype(value)>>();
    });
  } catch (const Error& e) {
    fail(where, ": not the settings of a run: ", e.what());
  }
  return o;
}

TrainOptions settings_of(const CheckpointInfo& checkpoint) {
  return TrainOptions::parse(read_trainer_state(checkpoint.path).settings_json, checkpoint.path + "/trainer.json");
}

Parametrization parametrization_of(const TrainOptions& o) {
  if (o.parametrization != "completep" && o.parametrization != "standard")
    fail_usage("unknown --parametrization ", o.parametrization, "; known: completep, standard");
  return {.complete_p = o.parametrization == "completep", .zero_projections = o.zero_projections.value_or(false)};
}

OptimizerOptions optimizer_of(const TrainOptions& o) {
  return {.beta1 = o.beta1,
          .beta2 = o.beta2,
          .epsilon = o.epsilon,
          .weight_decay = o.weight_decay,
          .grad_clip = o.grad_clip,
          .kind = optimizer_named(o.optimizer),
          .guard_deviations = o.guard_deviations};
}

RecipeOptions recipe_of(const TrainOptions& o, int32_t end_of_text) {
  return {.z_loss = o.z_loss,
          .dropout = o.dropout,
          .end_of_text = o.document_mask ? end_of_text : -1,
          .parametrization = parametrization_of(o)};
}

}  // namespace llm
